"""IA3 (arXiv:2205.05638): outputs, or inputs of feed-forward layers, times a trained vector."""

from collections.abc import Callable, Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.linear_adapter import LinearAdapter
from weft.adapters.methods.patterns import Patterns
from weft.adapters.operations import InputScale, OutputScale
from weft.adapters.plan import AdapterPlan

FIELD = "feedforward_modules"


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """One vector for each selected module; an output's is multiplied to its bias too."""
    adapter = LinearAdapter("ia3", checkpoint, tensors, base, conv1d=True)
    takes_input = _feedforward_test(adapter.fields.names(FIELD) or ())
    adapter.fields.ignore("init_ia3_weights")
    for module in adapter.modules():
        name = f"{module.name}.ia3_l"
        if takes_input(module.name):
            adapter.add(module, InputScale(adapter.take(name, 1, module.in_features).flatten()))
        else:
            adapter.add(module, OutputScale(adapter.take(name, module.out_features, 1).flatten()))
    return adapter.plan()


def _feedforward_test(names: str | tuple[str, ...]) -> Callable[[str], bool]:
    """A pattern of whole names, or ends of names, which need not begin at a dot."""
    if not isinstance(names, str):
        return lambda name: name.endswith(names)
    patterns = Patterns(FIELD)
    pattern = patterns.compile(names)
    return lambda name: patterns.match(pattern, name, whole=True) is not None
