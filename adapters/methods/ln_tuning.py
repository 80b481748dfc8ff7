"""LN tuning (arXiv:2312.11420): norms, or other whole modules, with parameters of their own."""

from collections.abc import Mapping

from torch import Tensor

from weft.adapters.base import BaseModules
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods import saved_modules
from weft.adapters.methods.draft import Draft
from weft.adapters.methods.fields import Fields
from weft.adapters.methods.targets import TargetRule
from weft.adapters.plan import AdapterPlan

_PART = "ln_tuning_layers"


def lower(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules) -> AdapterPlan:
    """The parameters of every selected module replaced by the file's."""
    fields = Fields(checkpoint.config)
    rule, saved = TargetRule.read(fields), saved_modules.read(fields)
    fields.finish()
    draft = Draft(checkpoint, tensors, base)
    for module in sorted(rule.matching(base.types)):
        saved_modules.replace_module(draft, module, _PART)
    saved_modules.replace(draft, saved)
    return draft.plan("ln_tuning")
