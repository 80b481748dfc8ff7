"""Gives a command one option for each setting, so that flags and settings cannot drift apart."""

import inspect
from collections.abc import Callable, Collection, Hashable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from weft.server.cli.console import complain, human_size
from weft.server.settings import Settings, flag_of, read_settings

ALIASES = {"adapter": ("--lora-modules",)}
# What vLLM needs to be told and weft finds out by itself.
NEEDLESS = {
    "enable_lora": bool,
    "max_loras": str,
    "max_lora_rank": str,
    "max_cpu_loras": str,
}
EPILOG = (
    "Each flag is also a variable WEFT_… and a key of the --config file; "
    "a flag wins over a variable, a variable over the file."
)
_NAMES: dict[Hashable, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def is_size(setting: str) -> bool:
    """Whether a setting counts bytes."""
    return setting.endswith(("_memory", "_size"))


def with_settings(
    run: Callable[..., None], *, without: Collection[str] = ()
) -> Callable[..., None]:
    """A typer command with an option for each setting but those of `without`.

    It calls `run(sourced, ...)` with what `read_settings` made of all sources; options that `run`
    itself declares after its first parameter are passed on. Values go to `read_settings` as
    written, so that all sources are checked by the same code. Raises SettingsError when called.
    """
    own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]

    def command(config: Path | None = None, **flags: Any) -> None:
        passed_on = {parameter.name: flags.pop(parameter.name) for parameter in own}
        given = {name: value for name, value in flags.items() if value not in (None, [], ())}
        needless = [flag_of(name) for name in NEEDLESS if given.pop(name, None) is not None]
        if needless:
            complain(f"{', '.join(needless)}: not needed, adapters of any rank are always served")
        run(read_settings(given, config), **passed_on)

    command.__doc__ = run.__doc__
    parameters = [] if "model" in without else [_model_parameter()]
    parameters += [*own, _config_parameter()]
    parameters += [
        _option(name, field)
        for name, field in Settings.model_fields.items()
        if name != "model" and name not in without
    ]
    parameters += [_needless_option(name, kind) for name, kind in NEEDLESS.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _model_parameter() -> inspect.Parameter:
    argument = typer.Argument(
        help="Base model: a local folder or a hub id.", metavar="MODEL", show_default=False
    )
    return _parameter("model", Annotated[str | None, argument])


def _config_parameter() -> inspect.Parameter:
    option = typer.Option(
        "--config", help="TOML file of settings.", envvar="WEFT_CONFIG", metavar="FILE"
    )
    return _parameter("config", Annotated[Path | None, option])


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = flag_of(name)
    is_switch = field.annotation in (bool, bool | None)
    names = [f"{flag}/--no-{flag[2:]}"] if is_switch else [flag, *ALIASES.get(name, ())]
    option = typer.Option(
        *names, help=_help(name, field), metavar=None if is_switch else _metavar(name, field)
    )
    is_list = get_origin(field.annotation) is tuple
    kind = bool if is_switch else list[str] if is_list else str
    return _parameter(name, Annotated[kind | None, option])


def _needless_option(name: str, kind: type) -> inspect.Parameter:
    option = typer.Option(flag_of(name), hidden=True)
    return _parameter(name, Annotated[kind | None, option])


def _metavar(name: str, field: FieldInfo) -> str:
    if is_size(name):
        return "SIZE"
    if name.endswith("_for"):
        return "DURATION"
    if name == "adapter":
        return "NAME=PATH"
    parts = list(_parts(field.annotation))
    choices = [part for part in parts if isinstance(part, str)]
    return "|".join(choices) or next((_NAMES[part] for part in parts if part in _NAMES), "TEXT")


def _parts(annotation: object) -> Iterator[Hashable]:
    """All that an annotation is made of, itself included."""
    if isinstance(annotation, Hashable):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _help(name: str, field: FieldInfo) -> str:
    default = field.default
    if is_size(name):
        shown = "auto" if default is None else human_size(default)
    elif name.endswith("_for"):
        shown = "forever" if default is None else f"{default / 86400:g}d"
    elif isinstance(default, bool):
        shown = "on" if default else "off"
    else:
        shown = "" if default in (None, ()) else str(default)
    return f"{field.description}{shown and f' [default: {shown}]'}"
