"""The agent's settings: a TOML file → one frozen, validated object. No globals; nothing else reads the file.

Who the device is and which broker it trusts is in its identity folder, not here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet.errors import InputError, short_line


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Broker(_Section):
    """Where the MQTT broker listens, for a device that reaches it by another way than its identity says."""

    host: str | None = Field(default=None, min_length=1)
    port: int | None = Field(default=None, ge=1, le=65535)


class Download(_Section):
    """The second way for blobs: HTTP(S) ranges."""

    http: Literal["auto", "never"] = "auto"
    """Used when configured or offered; or never."""
    base_url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Where blobs are: `{digest}` in it is replaced, else `/blobs/{digest}` is added. None: where the server says."""


class ReplaySource(_Section):
    """Inputs replayed from a file, round and round."""

    kind: Literal["replay"]
    path: Path
    """.npz with `x` float32 [N, *sample] in the source model's layout and, for accuracy, `y` integer labels [N]."""
    rate_per_s: float = Field(default=20.0, gt=0, le=10_000)


class TelemetrySettings(_Section):
    """How often a window is closed and sent, and how much the spool may hold."""

    window_s: float = Field(default=10.0, ge=0.5, le=3600)
    spool_messages: int = Field(default=10_000, ge=10)


class Settings(_Section):
    """Everything that one agent is told."""

    profile: str
    state_folder: Path
    source: ReplaySource
    identity: Path = Path("identity")
    """The folder that enrolling this device made."""
    broker: Broker = Broker()
    download: Download = Download()
    telemetry: TelemetrySettings = TelemetrySettings()
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
    source = settings.source.model_copy(update={"path": folder / settings.source.path})
    below = {name: folder / getattr(settings, name) for name in ("identity", "state_folder", "root")}
    return settings.model_copy(update={**below, "source": source})
