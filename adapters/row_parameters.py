"""One call of a module for rows that have parameters of their own, where that computes the same.

It does of most norms: they multiply by their parameters, element by element.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from weft.adapters.module_tables import twin


def by_row(modules: Sequence[nn.Module], dims: int) -> Callable[..., Tensor]:
    """What computes the i-th row of its argument as `modules[i]` does.

    modules: alike but for their parameters, and of a kind that `takes_rows`
    dims: the argument's dimensions from the one that counts rows
    """
    parameters = {}
    for name, own in modules[0]._parameters.items():
        if own is not None:
            each = torch.stack([module._parameters[name] for module in modules])  # type: ignore[misc]
            parameters[name] = each.view(len(each), *[1] * (dims - each.dim()), *own.shape)
    first = modules[0]
    if isinstance(first, nn.LayerNorm) and type(first).forward is nn.LayerNorm.forward:
        return partial(_layer_norm, first, parameters)
    return twin(first, parameters)


def takes_rows(module: nn.Module, dim: int) -> bool:
    """Whether `by_row` is right for modules like this one: tried, on two rows of random values.

    Bits of a LayerNorm depend on the device and its instructions, so it is tried where it is.

    dim: which dimension of its only argument counts rows
    """
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if not own or any(True for _ in module.children()):
        return False
    random = torch.Generator().manual_seed(0)
    some = next(iter(own.values()))
    x = torch.randn(*[1] * dim, 2, *some.shape, generator=random).to(some)
    pair = [
        twin(
            module,
            {name: torch.rand(p.shape, generator=random).to(p) for name, p in own.items()},
        )
        for _ in range(2)
    ]
    try:
        together = by_row(pair, 1 + some.dim())(x)
        first, second = (each(x) for each in pair)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    apart = torch.cat((first.narrow(dim, 0, 1), second.narrow(dim, 1, 1)), dim)
    return torch.equal(together, apart)


def _layer_norm(module: nn.LayerNorm, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """torch's own takes one weight only; by its order of operations, for the same bits.

    parameters: weight and maybe bias, in shapes that broadcast with x
    """
    shape, weight, bias = module.normalized_shape, parameters["weight"], parameters.get("bias")
    if x.dtype == torch.float32:
        normed = F.layer_norm(x, shape, None, None, module.eps)
    else:
        one = torch.ones(shape, device=x.device)  # has the mean told in float32
        _, mean, scale = torch.native_layer_norm(x, shape, one, one, module.eps)
        normed = torch.addcmul(-mean * scale, x.float(), scale)
    if bias is None:
        return (normed * weight.float()).to(x.dtype)
    return torch.addcmul(bias.float(), normed, weight.float()).to(x.dtype)
