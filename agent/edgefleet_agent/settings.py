"""The agent's settings: a TOML file → one frozen, validated object. No globals; nothing else reads the file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgefleet.errors import InputError
from edgefleet.protocol.topics import NAME_PATTERN, SERVER_USER


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Broker(_Section):
    """Where the MQTT broker listens."""

    host: str
    port: int = Field(default=1883, ge=1, le=65535)


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

    fleet: str = Field(pattern=f"^{NAME_PATTERN}$")
    device: str = Field(pattern=f"^{NAME_PATTERN}$")
    profile: str
    state_folder: Path
    broker: Broker
    source: ReplaySource
    telemetry: TelemetrySettings = TelemetrySettings()
    root: Path = Path("/")
    """Where /proc and /sys are found."""

    @field_validator("fleet", "device")
    @classmethod
    def _is_not_the_servers(cls, value: str) -> str:
        if value == SERVER_USER:
            raise ValueError("the server connects by this name")
        return value


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
        raise InputError(doing, f"{where}: {first['msg']}", "compare with edgefleet-agent.toml") from error
    folder = path.parent
    source = settings.source.model_copy(update={"path": folder / settings.source.path})
    return settings.model_copy(
        update={"state_folder": folder / settings.state_folder, "source": source, "root": folder / settings.root}
    )
