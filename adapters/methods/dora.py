"""DoRA: the norms of the changed weight's rows, trained apart from their directions."""

import torch
from torch import Tensor

from weft.adapters.base import TargetModule
from weft.adapters.methods.draft import Draft
from weft.adapters.operations import LowRank


def magnitude_name(module: str) -> str:
    """What the file calls the norms."""
    return f"{module}.lora_magnitude_vector"


def take_factors(draft: Draft, module: TargetModule, pair: LowRank) -> Tensor:
    """What every output is multiplied by, `[out_features]`: trained norms by the norms as they are.

    pair: the module's change, scaled as its output is. Of an embedding, an output's row is over the
    vocabulary. Raises AdapterInvalid where the base's weight is not loaded.
    """
    magnitude = draft.take(magnitude_name(module.name), module.out_features)
    weight = module.weight().to("cpu", torch.float32)
    if module.kind == "embedding":
        weight = weight.T
    changed = weight + (pair.b.T @ pair.a) / module.scale
    norms: Tensor = torch.linalg.vector_norm(changed, dim=1)
    return magnitude / norms
