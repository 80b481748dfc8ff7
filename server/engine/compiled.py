"""The base's decoder compiled by torch: what transformers' code does between the products.

Linear layers, attention and whatever adapters do stay what they are, operators that the compiled
code calls. It is compiled when the engine starts and never again: a step that it is not valid for,
as one with a version that brings a norm of its own, runs as it would without it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from weft.kernels.segments import Segments
from weft.server.engine.batch import StepBatch
from weft.server.engine.forward import Forward
from weft.server.engine.self_test import SelfTest
from weft.server.engine.step_plan import Scheduled, StepPlan
from weft.server.engine.unsupported import ModelUnsupported
from weft.server.engine.weights import Progress

_EMPTY_SLOT = 0
_MOST_GRAPHS = 64  # of all engines of a process; torch would stop at 8 and say nothing


def compile_decoder(forward: Forward, test: SelfTest, progress: Progress) -> None:
    """Compiles it for steps of one row and of many, with adapters in use and without.

    test: steps to compile for; the cache has room for them, and no slot is filled yet
    Raises ModelUnsupported where torch cannot compile all of it.
    """
    model: Any = forward.model
    decoder = model.get_decoder()
    compiled = _Compiled(torch.compile(decoder.forward, dynamic=True, fullgraph=True))
    decoder.__dict__["forward"] = compiled
    batches = [forward.build(plan) for plan in _plans(test)]
    batches += [_with_adapters(batch) for batch in batches]
    try:
        # Versions watch modules by hooks, whose coming torch would not notice by default.
        with torch._dynamo.config.patch(
            skip_nnmodule_hook_guards=False, recompile_limit=_MOST_GRAPHS
        ):
            for done, batch in enumerate(batches):
                progress("compile", done, len(batches))
                forward.run(batch)
    except Exception as error:
        reason = f"torch cannot compile {type(model).__name__}: {error}"
        raise ModelUnsupported(f"--compile: {reason}") from error
    if not compiled.called:
        raise ModelUnsupported(f"--compile: {type(model).__name__} does not call its decoder")
    compiled.stance = "eager_on_recompile"
    progress("compile", len(batches), len(batches))


@dataclass
class _Compiled:
    """In place of a module's forward; stance: torch's word for what it does with new cases."""

    forward: Callable[..., Any]
    stance: str = "default"
    called: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        with torch.compiler.set_stance(self.stance):
            return self.forward(*args, **kwargs)


def _plans(test: SelfTest) -> list[StepPlan]:
    """A step of one row, and one of many."""
    plan = next(test.plans())
    first = plan.items[0]
    return [StepPlan((Scheduled(first.seq, first.start, 1, samples=True),)), plan]


def _with_adapters(batch: StepBatch) -> StepBatch:
    """The same step as one of a slot that does nothing."""
    rows, kept = batch.input_ids.shape[1], len(batch.kept)
    return replace(
        batch,
        segments=Segments.from_slots([_EMPTY_SLOT] * rows),
        kept_segments=Segments.from_slots([_EMPTY_SLOT] * kept),
    )
