"""The kernels of expert layers: how rows are sorted, what each expert computes, what is summed."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weft.kernels.experts import Routing, expert_linear, reference
from weft.kernels.segments import Segment, Segments
from weft.kernels.testing import assert_close

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
CHOSEN = torch.tensor([[2, 0], [0, 3], [2, 3], [0, 2]])

layers = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 40),
        "experts": st.integers(1, 9),
        "choices": st.integers(1, 3),
        "transposed": st.booleans(),
        "biased": st.booleans(),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16]),
        "seed": st.integers(0, 2**20),
    }
)


def chosen_by(rows: int, experts: int, choices: int) -> Tensor:
    """A random router's choice; no row has one expert twice."""
    return torch.rand(rows, experts).argsort(dim=1)[:, :choices]


@DEVICES
@given(arguments=layers)
def test_a_map_is_its_definition(device: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(arguments["seed"])
    experts, dtype, transposed = (arguments[k] for k in ("experts", "dtype", "transposed"))
    chosen = chosen_by(arguments["rows"], experts, arguments["choices"]).to(device)
    routing = Routing.of(chosen, experts)
    shape = (experts, 24, 16) if transposed else (experts, 16, 24)
    weight = (torch.randn(shape) / 24**0.5).to(device, dtype)
    bias = torch.randn(experts, 16).to(device, dtype) if arguments["biased"] else None
    x = torch.randn(len(routing.rows), 24).to(device, dtype)
    actual = expert_linear(x, weight, bias, routing, transposed=transposed)
    expected = reference.expert_linear(
        x.cpu(), weight.cpu(), _cpu(bias), routing, transposed=transposed
    )
    assert_close(actual.cpu(), expected, dtype)


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


@DEVICES
def test_pairs_are_sorted_by_expert_and_then_by_row(device: str) -> None:
    routing = Routing.of(CHOSEN.to(device), 5)
    assert routing.experts.tolist() == [0, 0, 0, 2, 2, 2, 3, 3]
    assert routing.rows.tolist() == [0, 1, 3, 0, 2, 3, 1, 2]
    assert routing.ends.tolist() == [3, 3, 6, 8, 8]


@DEVICES
def test_adapter_rows_keep_together_within_an_expert(device: str) -> None:
    step = Segments((Segment(7, 1, 3), Segment(4, 3, 4)), 4)
    pairs = Routing.of(CHOSEN.to(device), 5).segments(step)
    assert pairs.rows == 8
    assert pairs.items == (
        Segment(7, 1, 2, 0),
        Segment(4, 2, 3, 0),
        Segment(7, 4, 5, 2),
        Segment(4, 5, 6, 2),
        Segment(7, 6, 8, 3),
    )


@DEVICES
def test_two_adapters_never_share_a_segment(device: str) -> None:
    chosen = torch.zeros(3, 1, dtype=torch.int64, device=device)
    step = Segments((Segment(0, 0, 1), Segment(1, 1, 2), Segment(0, 2, 3)), 3)
    items = Routing.of(chosen, 1).segments(step).items
    assert items == step.items
    assert Routing.of(chosen, 1).segments(Segments((), 3)).items == ()


@DEVICES
def test_pairs_are_summed_by_the_routers_weights(device: str) -> None:
    routing = Routing.of(CHOSEN.to(device), 5)
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], device=device)
    y = 10.0 ** routing.experts[:, None].float()  # says which expert a summand is of
    assert routing.combine(y, weights).flatten().tolist() == [102, 4003, 6500, 807]


@given(arguments=layers)
def test_a_whole_layer_is_as_computed_row_by_row(arguments: dict[str, Any]) -> None:
    torch.manual_seed(arguments["seed"])
    experts, choices = arguments["experts"], min(arguments["choices"], arguments["experts"])
    chosen = chosen_by(arguments["rows"], experts, choices)
    weights = torch.rand(chosen.shape)
    weight, x = torch.randn(experts, 4, 8), torch.randn(len(chosen), 8)
    routing = Routing.of(chosen, experts)
    y = expert_linear(x[routing.rows], weight, None, routing, transposed=False)
    expected = torch.stack(
        [
            sum((w * (weight[e] @ row) for e, w in zip(of, ws, strict=True)), torch.zeros(4))
            for row, of, ws in zip(x, chosen.tolist(), weights, strict=True)
        ]
    )
    assert_close(routing.combine(y, weights), expected, torch.float32)
