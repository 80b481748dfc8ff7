"""One call of a module for rows that have parameters of their own, where that computes the same.

It does of most norms: they multiply by their parameters, element by element.
"""

from collections.abc import Sequence

import torch
from torch import nn

from weft.adapters.module_tables import twin


def by_row(modules: Sequence[nn.Module], dims: int) -> nn.Module:
    """A module that computes the i-th row of its argument as `modules[i]` does.

    modules: alike but for their parameters, and of a kind that `takes_rows`
    dims: the argument's dimensions from the one that counts rows
    """
    parameters = {}
    for name, own in modules[0]._parameters.items():
        if own is not None:
            each = torch.stack([module._parameters[name] for module in modules])  # type: ignore[misc]
            parameters[name] = each.view(len(each), *[1] * (dims - each.dim()), *own.shape)
    return twin(modules[0], parameters)


def takes_rows(module: nn.Module, dim: int) -> bool:
    """Whether `by_row` is right for modules like this one: tried, on two rows of random values.

    dim: which dimension of its only argument counts rows
    """
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if not own or any(True for _ in module.children()):
        return False
    random = torch.Generator().manual_seed(0)
    some = next(iter(own.values()))
    x = torch.randn(*[1] * dim, 2, *some.shape, generator=random).to(some.dtype)
    pair = [
        twin(
            module,
            {name: torch.rand(p.shape, generator=random).to(p.dtype) for name, p in own.items()},
        )
        for _ in range(2)
    ]
    try:
        together, first, second = (each(x) for each in (by_row(pair, 1 + some.dim()), *pair))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    apart = torch.cat((first.narrow(dim, 0, 1), second.narrow(dim, 1, 1)), dim)
    return torch.equal(together, apart)
