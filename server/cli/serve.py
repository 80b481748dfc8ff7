"""`weft serve` and `weft demo`."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from weft.server import demo as embedded
from weft.server import logs
from weft.server.cli.console import Refusal, complain, out
from weft.server.cli.startup import StartupView
from weft.server.engine.launch import Launched, launched_ahead
from weft.server.engine.messages import EngineInfo
from weft.server.settings import AdapterSource, Settings, Sourced

QUESTION = "Where is my order 4821?"
DEMO_SETS = frozenset({"model", "adapter", "adapter_dir"})


def serve(sourced: Sourced) -> None:
    """Serves a base model, a local folder or a hub id, with its adapters."""
    if sourced.settings.model is None:
        raise Refusal("MODEL: name a local folder or a hub id", 2)
    _run(sourced.settings, StartupView())


def demo(sourced: Sourced) -> None:
    """Serves the small model and the adapters that come with weft, to try it in ten seconds."""
    folders = embedded.adapter_folders()
    settings = sourced.settings.model_copy(
        update={
            "model": str(embedded.BASE),
            "served_model_name": sourced.settings.served_model_name or embedded.MODEL_NAME,
            "adapter": tuple(AdapterSource(name, path) for name, path in folders.items()),
            "adapter_dir": None,
        }
    )
    _run(settings, DemoView(), embedded.EXAMPLES)


class DemoView(StartupView):
    """Adds to the block what to try first."""

    def serving(self, model: str, info: EngineInfo, adapters: Sequence[str], url: str) -> None:
        """Prints the page's address and three calls that work as they stand."""
        super().serving(model, info, adapters, url)
        chat = f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json'"
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'
        lines = (
            f"The page: {url}/",
            "",
            f"curl -s {url}/v1/models",
            f"{chat} -d '{body}'",
            f"{chat} -H 'X-Adapter-ID: {adapters[0]}' -d '{body}'",
        )
        for line in lines:
            out.print(line)


def _run(settings: Settings, view: StartupView, examples: Path | None = None) -> None:
    with launched_ahead(settings.log_level, _to_pack(settings)) as launch:
        _serve(settings, view, examples, launch)


def _to_pack(settings: Settings) -> tuple[str, ...]:
    """What an engine may begin to pack at once: weights that are likely to be packed in 16 bits."""
    is_plain = settings.quantization == "none" and settings.dtype in ("auto", "float32")
    if settings.model is None or settings.device == "cuda" or not is_plain:
        return ()
    return settings.model, settings.device, settings.dtype


def _serve(
    settings: Settings, view: StartupView, examples: Path | None, launch: Callable[[], Launched]
) -> None:
    from weft.server.exposure import is_open_to_all
    from weft.server.serve import StartError, serve  # FastAPI, uvicorn: not for other commands

    logs.configure(settings.log_level)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.root.level))
    if is_open_to_all(settings):
        complain(
            f"WARNING: --host {settings.host} without --api-key or --tenants: whoever reaches this "
            "address can use the model and load, replace and remove adapters"
        )
    try:
        serve(settings, view, launch, examples)
    except StartError as error:
        raise Refusal(str(error), 2) from None
