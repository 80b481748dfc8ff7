"""What a person sees while the server starts, and once it serves."""

from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from weft.server.cli.console import complain, err, human_size, print_fields
from weft.server.engine.messages import EngineInfo


class StartupView:
    """A progress bar, then one block. Without a terminal, a line for each stage instead."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=err,
            transient=True,
        )
        self._stages: dict[str, TaskID] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of `stage` are behind us."""
        if stage not in self._stages:
            if err.is_terminal:
                self._bar.start()
            else:
                complain(f"starting: {stage}")
            self._stages[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._stages[stage], completed=done, total=total)

    def stop(self) -> None:
        """Takes the bar away, whether the start went well or not."""
        if self._bar.live.is_started:
            self._bar.stop()

    def serving(self, model: str, info: EngineInfo, adapters: Sequence[str], url: str) -> None:
        """Prints what is served, with what capacity, and where."""
        self.stop()
        tokens = info.pages * info.page_size
        print_fields(
            {
                "model": f"{model} ({info.parameters:,} parameters, context {info.max_model_len})",
                "device": f"{info.device}, {info.dtype}",
                "weights": _weights(info),
                "KV cache": f"{info.pages:,} pages of {info.page_size}: {tokens:,} tokens",
                "adapter pool": f"{human_size(info.adapter_bytes)}, {info.slots} slots",
                "adapters": ", ".join(adapters) or "none yet",
                "URL": url,
            }
        )

    def draining(self) -> None:
        """Says that the server only finishes what it has begun."""
        self.stop()
        complain("finishing the requests under way; interrupt again to stop at once")


def _weights(info: EngineInfo) -> str:
    size = human_size(info.weight_bytes)
    return size if info.quantization == "none" else f"{size}, {info.quantization}"
