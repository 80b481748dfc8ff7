"""Each setting once: its flag, its `WEFT_…` variable, its key in a TOML file, its default.

Knows nothing of how the command line is parsed or of what the settings are used for.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from weft.adapters.retention import Retention

ENV_PREFIX = "WEFT_"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_POWERS = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class SettingsError(ValueError):
    """Settings that cannot be used: one line each, naming the flag, variable or key at fault."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class AdapterSource(NamedTuple):
    """An adapter to load at start: the name that clients use, and its folder."""

    name: str
    path: Path


def parse_size(text: object) -> object:
    """Bytes from `10GiB`, `1.5 GB` or a number of bytes; None from `auto`."""
    if not isinstance(text, str):
        return text
    if text.lower() == "auto":
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("should be a size like 10GiB, 512MB or a number of bytes, or auto")
    unit = (match[2] or "B").lower()
    return int(float(match[1]) * (1024 if "i" in unit else 1000) ** _POWERS[unit[0]])


def parse_duration(text: object) -> object:
    """Seconds from `30d`, `12h`, `5m` or `10s`; None from `forever`."""
    if not isinstance(text, str):
        return text
    if text.lower() == "forever":
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("should be a duration like 30d, 12h, 5m or 10s, or forever")
    return float(match[1]) * _SECONDS[match[2].lower()]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _adapter_source(value: object) -> object:
    if not isinstance(value, str):
        return value
    name, equals, path = value.partition("=")
    if not (name and equals and path):
        raise ValueError("should be NAME=PATH")
    return AdapterSource(name, Path(path).expanduser())


def _port(value: object) -> object:
    if isinstance(value, str) and value.startswith("tcp://"):
        raise ValueError(
            "holds a Kubernetes service address; set enableServiceLinks: false in the pod, "
            "or give the service another name"
        )
    return value


Size = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(parse_size)]
Duration = Annotated[Annotated[float, Field(ge=0)] | None, BeforeValidator(parse_duration)]
Count = Annotated[int, Field(ge=1)] | None
Folder = Annotated[Path, BeforeValidator(lambda value: Path(value).expanduser())]


class Settings(BaseSettings):
    """What `weft serve` is told. Sizes are in bytes; None means chosen at start."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    model: str | None = Field(None, description="Base model: a local folder or a hub id.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, BeforeValidator(_port)] = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one."
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of weights and activations."
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none", description="How the base's linear weights are stored."
    )
    served_model_name: str | None = Field(
        None, description="Name of the base in the API; the last part of MODEL if not given."
    )
    max_model_len: Count = Field(None, description="Longest prompt plus answer, in tokens.")
    max_num_seqs: int = Field(64, ge=1, description="Sequences computed at the same time.")
    max_queue: int = Field(
        1024,
        ge=0,
        description="Sequences that may wait beside them; more are answered 429, "
        "but for tenants below their share.",
    )
    request_timeout: float | None = Field(
        None, gt=0, description="Longest time that an answer may take, in seconds."
    )
    max_num_batched_tokens: Count = Field(None, description="Token budget of one step.")
    kv_cache_memory: Size = Field(None, description="KV cache: 10GiB, a number of bytes, auto.")
    adapter_memory: Size = Field(None, description="Adapters held on the device.")
    adapter_host_memory: Size = Field(None, description="Adapters held ready in host memory.")
    adapter: Annotated[
        tuple[Annotated[AdapterSource, BeforeValidator(_adapter_source)], ...],
        NoDecode,
        BeforeValidator(_split),
    ] = Field((), description="NAME=PATH of an adapter to load at start; repeatable.")
    adapter_dir: Folder | None = Field(
        None, description="Folder whose every subfolder is an adapter to load at start."
    )
    adapter_root: Annotated[tuple[Folder, ...], NoDecode, BeforeValidator(_split)] = Field(
        (),
        description="Folder from which clients may load adapters by path; repeatable. "
        "None: by upload only.",
    )
    allow_runtime_adapters: bool = Field(
        True, description="Let clients load, replace and remove adapters."
    )
    allow_hub_adapters: bool = Field(
        False, description="Let clients name a hub repository to load an adapter from."
    )
    max_adapter_size: Annotated[int, Field(ge=1), BeforeValidator(parse_size)] = Field(
        4 << 30, description="Largest adapter that clients may load."
    )
    keep_versions: int = Field(
        20, ge=1, description="Newest versions of each adapter that are kept."
    )
    keep_versions_for: Duration = Field(
        None, description="How long a version is kept once it was replaced: 30d, 12h, forever."
    )
    api_key: SecretStr | None = Field(None, description="The key that clients must send.")
    tenants: Path | None = Field(None, description="TOML file of tenants and their keys.")
    state_dir: Folder | None = Field(
        None,
        description="Where loaded adapters are kept across restarts; "
        "by default a folder of the user's own for each base model.",
    )
    audit_log: Folder | None = Field(
        None, description="File of who changed what; by default audit.jsonl in the state folder."
    )
    keep_usage_for: Duration = Field(
        90 * 86400.0, description="How long the usage of an hour is kept: 90d, 12h, forever."
    )
    enable_prefix_caching: bool = Field(True, description="Reuse the KV of equal prefixes.")
    speculation: Literal["ngram", "off"] = Field(
        "ngram",
        description="Check tokens that stood after an earlier occurrence of an answer's end, "
        "as many at once as is faster; answers stay the same.",
    )
    compile: bool = Field(
        False,
        description="Let torch.compile fuse what the base computes between its products, at the "
        "start; takes a minute or more, and a C++ compiler.",
    )
    enforce_eager: bool = Field(
        False,
        description="On a GPU, launch each decode step anew instead of replaying CUDA graphs.",
    )
    async_scheduling: bool | None = Field(
        None,
        description="Launch a step before the tokens of the one before it are read, where it does "
        "not depend on them. [default: on for a GPU, off for a CPU]",
    )
    trust_proxy_header: str | None = Field(
        None, description="Header in which a trusted proxy names the tenant."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe messages to log."
    )
    seed: int = Field(0, ge=0, description="Seed of sampling where a request gives none.")
    threads: Count = Field(None, description="CPU threads of the engine.")
    engine_timeout: float = Field(
        120.0,
        ge=10,
        description="Seconds without a sign of life until the engine is ended and started again; "
        "a step must not take longer.",
    )
    loader_memory: Size = Field(
        None, description="Memory that reading one adapter may take; half of what is free."
    )
    loader_timeout: int = Field(
        600, ge=1, description="Processor time that reading one adapter may take, in seconds."
    )

    @property
    def retention(self) -> Retention:
        """Which old versions are kept."""
        return Retention(self.keep_versions, self.keep_versions_for)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller gives: `read_settings` merges the sources and keeps their names."""
        return (init_settings,)


@dataclass(frozen=True)
class Sourced:
    """Settings, and for each one what set it: a flag, a variable, a file or "default"."""

    settings: Settings
    sources: Mapping[str, str]


def flag_of(field: str) -> str:
    """The command line's word for a setting."""
    return "MODEL" if field == "model" else f"--{field.replace('_', '-')}"


def read_settings(flags: Mapping[str, Any], config: Path | None = None) -> Sourced:
    """Merges flags over environment over the TOML file `config` over defaults.

    Raises SettingsError, with one line for each value at fault.
    """
    layers = [
        (flag_of, flags),
        (lambda field: f"{ENV_PREFIX}{field.upper()}", EnvSettingsSource(Settings)()),
        (lambda field: f"{config}: {field}", _read_file(config)),
    ]
    values: dict[str, Any] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    for label, layer in layers:
        for field in layer.keys() - values.keys():
            values[field], sources[field] = layer[field], label(field)
    try:
        return Sourced(Settings(**values), sources)
    except ValidationError as error:
        raise SettingsError(_lines(error, sources)) from None


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError([f"--config: {path}: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"--config: {path}: {error}"]) from None
    return {key.replace("-", "_"): value for key, value in content.items()}


def _lines(error: ValidationError, sources: Mapping[str, str]) -> list[str]:
    """One line for each field at fault, in the words of whoever set it."""
    lines: dict[str, str] = {}
    for detail in error.errors():
        field = cast(str, detail["loc"][0])
        if detail["type"] == "extra_forbidden":
            reason = "there is no such setting"
        else:
            reason = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
            reason = reason.partition(", unable to")[0]
            reason += "" if field == "api_key" else f", not {detail['input']!r}"
        lines.setdefault(field, f"{sources[field]}: {reason}")
    return list(lines.values())
