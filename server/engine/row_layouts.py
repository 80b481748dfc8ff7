"""How the modules of a model see the rows of a step, watched in a dry run instead of believed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weft.adapters.overridable import RowLayout


@dataclass
class RowWatch:
    """What was seen of each module with parameters of its own, call by call.

    counts: rows that a linear or embedding saw
    layouts: how any other module saw them; None where it does not compute each row by itself
    """

    counts: dict[str, list[int]] = field(default_factory=dict)
    layouts: dict[str, list[RowLayout | None]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(cls, model: nn.Module, rows: int) -> "Iterator[RowWatch]":
        """Watches the calls made in the context, of which each has `rows` rows.

        No other dimension of the model may be as large.
        """
        watch = cls()
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
                note = _counter(watch.counts.setdefault(name, []))
                handles.append(module.register_forward_pre_hook(note))
            elif any(True for _ in module.parameters(recurse=False)):
                see = _layout_watcher(watch.layouts.setdefault(name, []), rows)
                handles.append(module.register_forward_hook(see, with_kwargs=True))
        try:
            yield watch
        finally:
            for handle in handles:
                handle.remove()

    def adaptable(self) -> dict[str, RowLayout]:
        """The modules beside linears and embeddings that ran once and compute each row alone."""
        return {
            name: layouts[0]
            for name, layouts in self.layouts.items()
            if len(layouts) == 1 and layouts[0] is not None
        }

    def refused(self, expected: Mapping[str, int], rows: int) -> dict[str, str]:
        """Why the other modules cannot be adapted, by name.

        expected: the modules that are given other than `rows` rows
        """
        wrong = [n for n, counts in self.counts.items() if counts != [expected.get(n, rows)]]
        adaptable = self.adaptable()
        wrong += [name for name in self.layouts if name not in adaptable]
        return {name: f"the base does not run {name} once for each token" for name in wrong}


def _counter(counts: list[int]) -> Any:
    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        width = 1 if isinstance(module, nn.Embedding) else args[0].shape[-1]
        counts.append(args[0].numel() // width)

    return note


def _layout_watcher(layouts: list[RowLayout | None], rows: int) -> Any:
    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        results = result if isinstance(result, tuple) else (result,)
        arguments, outputs = _dimensions(args, rows), _dimensions(results, rows)
        known = arguments and outputs and not kwargs
        layouts.append(RowLayout(arguments, outputs) if known else None)

    return see


def _dimensions(values: Sequence[Any], rows: int) -> tuple[int, ...]:
    """Which dimension of each value has `rows` entries; empty unless each has exactly one."""
    if not all(isinstance(value, Tensor) and value.shape.count(rows) == 1 for value in values):
        return ()
    return tuple(value.shape.index(rows) for value in values)
