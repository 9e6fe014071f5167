"""The agent's settings: a TOML file → one frozen, validated object. No globals; nothing else reads the file.

Who the device is and which broker it trusts is in its identity folder, not here.
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from edgefleet.errors import InputError, short_line
from edgefleet.protocol.decisions import Objective
from edgefleet_agent.source_settings import Section, Sink, Source


class Broker(Section):
    """Where the MQTT broker listens, for a device that reaches it by another way than its identity says."""

    host: str | None = Field(default=None, min_length=1)
    port: int | None = Field(default=None, ge=1, le=65535)


class Download(Section):
    """The second way for blobs: HTTP(S) ranges."""

    http: Literal["auto", "never"] = "auto"
    """Used when configured or offered; or never."""
    base_url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Where blobs are: `{digest}` in it is replaced, else `/blobs/{digest}` is added. None: where the server says."""


class TelemetrySettings(Section):
    """How often a window is closed and sent, and what waits for the server."""

    window_s: float = Field(default=10.0, ge=0.5, le=3600)
    spool_mb: int = Field(default=16, ge=2, le=4096)
    """What the spool may take of the disk (1 MB is 10^6 bytes); the oldest windows are dropped beyond it."""
    replay_per_s: float = Field(default=50.0, ge=1, le=10_000)
    """How fast what waits is sent."""


class RuntimeSettings(Section):
    """How the runtime is opened; each takes what it knows of it."""

    threads: int = Field(default=1, ge=1, le=256)
    """Where no benchmark on this device has found a better number."""
    providers: tuple[str, ...] = Field(default=("CPUExecutionProvider",), min_length=1)
    """ONNX Runtime's execution providers, the preferred one first (`TensorrtExecutionProvider`)."""
    provider_options: dict[str, dict[str, str]] = Field(default_factory=dict)
    """ONNX Runtime: provider, and its own options."""
    device: str = Field(default="CPU", pattern=r"^[A-Z][A-Z0-9.:,()]*$")
    """OpenVINO's device: CPU, GPU, NPU."""
    precision_hint: Literal["f32", "f16", "bf16", "device"] = "f32"
    """What OpenVINO computes floating point in; device: what its plugin prefers."""


class WorkerSettings(Section):
    """The process that infers: what it may take, and when it is given up."""

    memory_mb: int | None = Field(default=None, ge=64)
    """The most it may take for itself (1 MB is 10^6 bytes); None: what the board has."""
    hang_s: float = Field(default=60.0, ge=1, le=3600)
    """It is started anew after an inference or a silence of this length."""
    swap: Literal["warm", "stop-start"] = "warm"
    """How variants change places: the new one beside the old one, or, where memory is short, after it."""


class UpdateSettings(Section):
    """When an installation has to wait."""

    lock_file: Path = Path("update.lock")
    """While it is there nothing is activated; relative to the state folder."""


class SelectionSettings(Section):
    """By what one of a package's variants is chosen, and what may be pulled and measured for it."""

    objective: Objective = Objective.LATENCY
    threads: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(max_length=4)] = ()
    """Numbers of threads to measure each with; empty: one, half of the cores, and all of them."""
    final_s: float = Field(default=30.0, ge=1, le=600)
    """How long each finalist is measured; twice that where the energy decides."""
    limit_s: float = Field(default=1200.0, ge=1, le=1800)
    """After this what was measured so far decides."""
    candidates: int = Field(default=3, ge=1, le=8)
    """How many variants are pulled and measured at most."""
    max_candidate_bytes: int | None = Field(default=None, ge=1)
    """Of all that are pulled to be measured; the first choice is pulled in any case."""
    metered: bool = False
    """Whether bytes cost money: one variant is pulled then."""
    prior: Literal["auto", "never"] = "auto"
    """Whether what the same hardware found before is taken over instead of measuring."""


class ProbationSettings(Section):
    """How long a variant is watched before it is committed."""

    windows: int = Field(default=12, ge=1, le=10_000)
    """Telemetry windows with inferences that a full judgement needs."""
    min_inferences: int = Field(default=200, ge=1)
    """And inferences in them."""
    deadline_s: float = Field(default=900.0, ge=0.1, le=7 * 86_400)
    """Of running time: whoever failed no gate until then is committed, with evidence insufficient."""
    quantile: float = Field(default=0.9, gt=0, lt=1)
    """Of the latencies that are compared with those of the committed variant."""
    latency_tolerance: float = Field(default=0.1, ge=0)
    """By which share that may be higher; the energy of an inference too."""
    energy_tolerance: float = Field(default=0.1, ge=0)
    errors_tolerance: float = Field(default=0.01, ge=0, le=1)
    """By how much the share of inferences that fail may be higher."""
    throttled_tolerance: float = Field(default=0.25, ge=0, le=1)
    """By how much the share of throttled windows may be higher."""
    least_agreement: float = Field(default=0.8, ge=0, le=1)
    """Share of live inputs on which both variants give the same answer."""
    first_errors: float = Field(default=0.05, ge=0, le=1)
    """Share of inferences that may fail on a first install."""


class ServeSettings(Section):
    """The local API: the Open Inference Protocol over HTTP, without authentication."""

    enabled: bool = False
    host: str = "127.0.0.1"
    """An address of this machine."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0: any that is free."""
    model: str = Field(default="model", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """What clients call whatever this device runs: it stays when the variant, or the package, is another."""
    allow_network: bool = False
    """Whether `host` may be an address that others reach too: whoever reaches it may ask."""
    names: tuple[str, ...] = ()
    """Names that clients may call this machine, beside localhost, its host name and any address."""
    max_body_mb: int = Field(default=8, ge=1, le=256)
    """Of one request; four of this size are held at a time (1 MB is 10^6 bytes)."""

    @model_validator(mode="after")
    def _is_local_or_allowed(self) -> ServeSettings:
        try:
            is_local = ipaddress.ip_address(self.host).is_loopback
        except ValueError as error:
            raise ValueError(f"host {self.host!r} is no IP address") from error
        if not is_local and not self.allow_network:
            raise ValueError(f"host {self.host} is reached by others: set allow_network = true if that is meant")
        return self


class Settings(Section):
    """Everything that one agent is told."""

    profile: str
    state_folder: Path
    source: Source | None = None
    """Where inputs come from; None: from the local API alone."""
    sinks: tuple[Sink, ...] = ()
    """Where results of the source's inputs go, beside the telemetry."""
    identity: Path = Path("identity")
    """The folder that enrolling this device made."""
    broker: Broker = Broker()
    download: Download = Download()
    telemetry: TelemetrySettings = TelemetrySettings()
    runtime: RuntimeSettings = RuntimeSettings()
    worker: WorkerSettings = WorkerSettings()
    update: UpdateSettings = UpdateSettings()
    selection: SelectionSettings = SelectionSettings()
    probation: ProbationSettings = ProbationSettings()
    serve: ServeSettings = ServeSettings()
    root: Path = Path("/")
    """Where /proc and /sys are found."""


def load(path: Path) -> Settings:
    """Read and check a settings file; relative paths are relative to it; raises InputError."""
    doing = f"reading the agent's settings {path}"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = Settings.model_validate(values)
    except OSError as error:
        raise InputError(doing, error.strerror or str(error), "name a readable TOML file") from error
    except UnicodeDecodeError as error:
        raise InputError(doing, "it is not UTF-8 text", "name a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(doing, f"it is not TOML ({error})", "correct that line") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(doing, short_line(f"{where}: {first['msg']}"), "compare with edgefleet-agent.toml") from error
    folder = path.parent
    source = None if settings.source is None else settings.source.below(folder)
    sinks = tuple(sink.below(folder) for sink in settings.sinks)
    below = {name: folder / getattr(settings, name) for name in ("identity", "state_folder", "root")}
    return settings.model_copy(update={**below, "source": source, "sinks": sinks})
