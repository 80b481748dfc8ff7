"""The sampler against exact probabilities, worked out slowly in plain Python."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from weft.server.engine.messages import Sampling
from weft.server.engine.sampling import Sampled, SampleRow, choose, token_logprobs, uniform

EOS = (2, 3)


def row(
    *, tokens: Sequence[int] = (5, 6, 7), prompt_len: int = 3, seed: int = 0, **fields: object
) -> SampleRow:
    sampling = Sampling(max_tokens=100, **fields)  # type: ignore[arg-type]
    return SampleRow(sampling, tokens, prompt_len, seed, EOS)


def random_logits(rows: int, vocabulary: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
    return choose(logits, rows).read()


def tokens_of(logits: Tensor, rows: Sequence[SampleRow]) -> list[int]:
    return [sampled.token for sampled in sample(logits, rows)]


def reference(logits: Sequence[float], wanted: SampleRow) -> list[float]:
    """The exact probability of each token."""
    sampling, scores = wanted.sampling, list(logits)
    if wanted.generated < sampling.min_tokens:
        ends = set(sampling.stop_token_ids) | set(() if sampling.ignore_eos else EOS)
        scores = [-math.inf if token in ends else score for token, score in enumerate(scores)]
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    for token in set(wanted.tokens):
        penalty = sampling.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token, count in Counter(wanted.tokens[wanted.prompt_len :]).items():
        scores[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    if sampling.temperature == 0:
        best = scores.index(max(scores))
        return [float(token == best) for token in range(len(scores))]
    return truncated([math.exp((s - max(scores)) / sampling.temperature) for s in scores], sampling)


def truncated(weights: list[float], sampling: Sampling) -> list[float]:
    weights = [w if w >= sampling.min_p * max(weights) else 0.0 for w in weights]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    total = math.fsum(weights[token] for token in order)
    kept: list[int] = []
    for token in order:
        if math.fsum(weights[t] for t in kept) >= sampling.top_p * total:
            break
        kept.append(token)
    total = math.fsum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


def assert_distributed(tokens: Sequence[int], expected: Sequence[float]) -> None:
    """Chi-square, at a threshold that chance passes about once in a million tries."""
    counts, draws = Counter(tokens), len(tokens)
    assert all(expected[token] > 0 for token in counts), "a token that must not be drawn was drawn"
    rare = [token for token, p in enumerate(expected) if 0 < p * draws < 10]
    common = [token for token, p in enumerate(expected) if p * draws >= 10]
    bins = [(counts[token], expected[token] * draws) for token in common]
    if rare:
        bins.append((sum(counts[t] for t in rare), math.fsum(expected[t] for t in rare) * draws))
    chi_square = sum((seen - wanted) ** 2 / max(wanted, 1.0) for seen, wanted in bins)
    freedom = len(bins)
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 20


HISTORY = (5, 6, 7, 9, 9, 9, 11)
SETTINGS: list[dict[str, object]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.6},
    {"top_p": 0.01},
    {"min_p": 0.2},
    {"top_k": 7, "top_p": 0.8, "min_p": 0.05, "temperature": 0.8},
    {"repetition_penalty": 1.8},
    {"presence_penalty": 1.0, "frequency_penalty": 0.7},
    {"logit_bias": {1: 4.0, 8: -100.0}},
    {"min_tokens": 10, "stop_token_ids": (6, 7)},
    {"min_tokens": 10, "ignore_eos": True, "stop_token_ids": (6,)},
    {"frequency_penalty": -0.5, "top_p": 0.9, "logit_bias": {3: 2.0}, "repetition_penalty": 0.8},
]


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
def test_draws_follow_the_exact_probabilities(fields: dict[str, object]) -> None:
    logits = random_logits(1, 30)
    draws = 6000
    rows = [row(tokens=HISTORY, seed=seed, **fields) for seed in range(draws)]
    tokens = tokens_of(logits.expand(draws, -1), rows)
    assert_distributed(tokens, reference(logits[0].tolist(), rows[0]))


def test_a_slightly_wrong_temperature_would_be_noticed() -> None:
    logits = random_logits(1, 30)
    rows = [row(seed=seed) for seed in range(6000)]
    tokens = tokens_of(logits.expand(6000, -1), rows)
    with pytest.raises(AssertionError):
        assert_distributed(tokens, reference(logits[0].tolist(), row(temperature=1.15)))


@pytest.mark.parametrize("vocabulary", [511, 512, 513, 1500])
@pytest.mark.parametrize("fields", [{}, {"top_p": 0.95}, {"top_k": 400}, {"min_p": 0.3}], ids=str)
def test_vocabularies_larger_than_a_block_and_the_candidates(
    vocabulary: int, fields: dict[str, object]
) -> None:
    logits = random_logits(1, vocabulary, spread=0.3)
    draws = 3000
    rows = [row(seed=seed, **fields) for seed in range(draws)]
    tokens = tokens_of(logits.expand(draws, -1), rows)
    assert_distributed(tokens, reference(logits[0].tolist(), rows[0]))


def test_a_nucleus_of_most_of_a_large_vocabulary() -> None:
    vocabulary, draws = 9000, 300
    logits = torch.zeros(1, vocabulary)
    logits[0, : vocabulary // 2] = 1.0
    rows = [row(seed=seed, top_p=0.5) for seed in range(draws)]
    assert max(tokens_of(logits.expand(draws, -1), rows)) < vocabulary // 2
    rows = [row(seed=seed, top_p=0.9) for seed in range(draws)]
    assert max(tokens_of(logits.expand(draws, -1), rows)) > vocabulary // 2


def test_equal_weights_at_the_cut_fall_to_the_lower_token_ids() -> None:
    logits = torch.zeros(1, 1000)
    rows = [row(seed=seed, top_k=3) for seed in range(200)]
    assert set(tokens_of(logits.expand(200, -1), rows)) == {0, 1, 2}


def test_positions_of_one_seed_are_independent_draws() -> None:
    logits = random_logits(1, 30)
    rows = [row(tokens=(5,) * length, seed=4) for length in range(3, 3003)]
    tokens = tokens_of(logits.expand(3000, -1), rows)
    assert_distributed(tokens, reference(logits[0].tolist(), rows[0]))


def test_uniform_is_fixed_and_even() -> None:
    values = [uniform(seed, position) for seed in range(50) for position in range(50)]
    assert values == [uniform(seed, position) for seed in range(50) for position in range(50)]
    assert 0 <= min(values) < 0.01 < 0.99 < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.02


sampling_fields = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        "top_k": st.integers(-1, 40),
        "top_p": st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.3, 1.0]),
        "repetition_penalty": st.sampled_from([0.7, 1.0, 1.5]),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 599), st.floats(-100, 100), max_size=4),
        "min_tokens": st.integers(0, 6),
        "logprobs": st.integers(0, 5),
    },
)
histories = st.lists(st.integers(0, 599), min_size=1, max_size=8)
sample_rows = st.builds(
    lambda fields, tokens, split, seed: row(
        tokens=tuple(tokens), prompt_len=min(split, len(tokens)), seed=seed, **fields
    ),
    sampling_fields,
    histories,
    st.integers(1, 8),
    st.integers(0, 2**64),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(sample_rows, min_size=1, max_size=6), st.integers(0, 1000))
def test_a_token_is_possible_and_does_not_depend_on_batch_mates(
    rows: list[SampleRow], seed: int
) -> None:
    logits = random_logits(len(rows), 600, seed)
    together = sample(logits, rows)
    assert sample(logits.flip(0), rows[::-1]) == together[::-1]
    for index, wanted in enumerate(rows):
        assert sample(logits[index : index + 1], [wanted]) == [together[index]]
        assert reference(logits[index].tolist(), wanted)[together[index].token] > 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 30),
    st.sampled_from([0.2, 0.7, 0.95]),
    st.sampled_from([0.02, 0.2]),
    st.sampled_from([0.8, 1.3]),
)
def test_the_reference_agrees_with_transformers(
    seed: int, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    logits = random_logits(1, 40, seed)
    tokens = torch.tensor([[1, 4, 4, 9]])
    common = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(0.9)]
    for warper, fields in [
        (TopKLogitsWarper(top_k), {"top_k": top_k}),
        (TopPLogitsWarper(top_p), {"top_p": top_p}),
        (MinPLogitsWarper(min_p), {"min_p": min_p}),
    ]:
        scores = LogitsProcessorList([*common, warper])(tokens, logits.clone())
        wanted = row(tokens=(1, 4, 4, 9), temperature=0.9, repetition_penalty=penalty, **fields)
        expected = torch.softmax(scores, dim=-1)[0].tolist()
        assert reference(logits[0].tolist(), wanted) == pytest.approx(expected, abs=1e-5)


def test_greedy_takes_the_largest_and_leaves_the_logits_alone() -> None:
    logits = random_logits(5, 700)
    before = logits.clone()
    rows = [row(temperature=0.0, logit_bias={3: 100.0} if index == 2 else {}) for index in range(5)]
    expected = logits.argmax(dim=-1).tolist()
    expected[2] = 3
    assert tokens_of(logits, rows) == expected
    assert torch.equal(logits, before)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_on_the_device_is_always_of_the_vocabulary(poison: float) -> None:
    logits = random_logits(3, 601)
    logits[1] = poison
    rows = [row(seed=seed, temperature=0.5 * seed) for seed in range(3)]
    tokens = choose(logits, rows).tokens.tolist()
    assert all(0 <= token < 601 for token in tokens)
    assert [tokens[0], tokens[2]] == [tokens_of(logits, rows)[index] for index in (0, 2)]


def test_only_tokens_that_were_drawn_again_are_not_what_is_on_the_device() -> None:
    logits = random_logits(200, 3000)
    rows = [row(seed=seed, top_p=0.9, temperature=5.0 * (seed % 2)) for seed in range(200)]
    choices = choose(logits, rows)
    sampled = choices.read()
    foreseen = [
        choice.token == token for choice, token in zip(sampled, choices.tokens, strict=True)
    ]
    assert foreseen == [choice.foreseen for choice in sampled]
    assert all(foreseen[::2])
    assert sum(foreseen[1::2]) < 50


@settings(max_examples=40, deadline=None)
@given(st.lists(sample_rows, min_size=1, max_size=4), st.integers(0, 1000), st.integers(1, 3))
def test_tokens_that_the_host_does_not_know_count_and_need_not_be_known(
    rows: list[SampleRow], seed: int, unread: int
) -> None:
    rows = [each for each in rows if not each.sampling.looks_back]
    logits = random_logits(len(rows), 600, seed)
    known = [replace(each, tokens=(*each.tokens, *range(unread))) for each in rows]
    unknown = [replace(each, unread=unread) for each in rows]
    assert sample(logits, known) == sample(logits, unknown)


@pytest.mark.parametrize("first", [7, 8195, 8200], ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {}, {"top_p": 0.5}, {"min_tokens": 9, "logprobs": 3}], ids=str
)
def test_a_row_that_is_not_finite_ends_alone(
    poison: float, first: int, fields: dict[str, object]
) -> None:
    logits = random_logits(4, 8201)
    rows = [row(seed=seed, **fields) for seed in range(4)]
    healthy = sample(logits, rows)
    poisoned = logits.clone()
    poisoned[1, first:] = poison
    if poison == -math.inf:
        poisoned[1] = poison
    result = sample(poisoned, rows)
    assert result[1].error is not None
    assert [result[i] for i in (0, 2, 3)] == [healthy[i] for i in (0, 2, 3)]


def test_a_masked_token_is_never_drawn_and_is_no_error() -> None:
    logits = random_logits(500, 20)
    logits[:, ::2] = -math.inf
    result = sample(logits, [row(seed=seed) for seed in range(500)])
    assert all(sampled.error is None and sampled.token % 2 for sampled in result)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = random_logits(3, 50)
    exact = torch.log_softmax(logits.double(), dim=-1)
    rows = [
        row(temperature=0.0, logprobs=4, logit_bias={9: 100.0}, repetition_penalty=2.0),
        row(temperature=0.0),
        row(temperature=0.3, top_k=2, logprobs=0),
    ]
    first, second, third = sample(logits, rows)
    assert first.token == 9
    assert first.logprobs is not None
    assert first.logprobs.logprob == pytest.approx(exact[0, 9].item(), abs=1e-5)
    top = exact[0].topk(4)
    assert [token for token, _ in first.logprobs.top] == top.indices.tolist()
    assert [value for _, value in first.logprobs.top] == pytest.approx(top.values.tolist())
    assert second.logprobs is None
    assert third.logprobs is not None
    assert third.logprobs.top == ()
    assert third.logprobs.logprob == pytest.approx(exact[2, third.token].item(), abs=1e-5)


def test_prompt_logprobs_may_ask_for_more_than_the_vocabulary() -> None:
    logits = random_logits(2, 5)
    first, second = token_logprobs(logits, [1, 4], [2, 20])
    assert (first.token, len(first.top)) == (1, 2)
    assert (second.token, len(second.top)) == (4, 5)


def test_min_tokens_counts_what_was_generated() -> None:
    logits = torch.zeros(2, 10)
    logits[:, 2] = 50.0
    early = row(tokens=(5, 6, 7, 8), prompt_len=3, temperature=0.0, min_tokens=2)
    late = replace(early, tokens=(5, 6, 7, 8, 8))
    assert tokens_of(logits, [early, late]) == [0, 2]


@pytest.mark.parametrize("vocabulary", [8192, 9000])
def test_greedy_takes_the_first_of_equals_in_a_large_vocabulary(vocabulary: int) -> None:
    logits = random_logits(4, vocabulary)
    top = logits.max() + 1
    equals = [(0, vocabulary - 1), (600, 601), (1023, 1024), (vocabulary - 2, vocabulary - 1)]
    for scores, tokens in zip(logits, equals, strict=True):
        scores[list(tokens)] = top
    assert tokens_of(logits, [row(temperature=0.0)] * 4) == [first for first, _ in equals]


def test_temperatures_near_zero_are_greedy() -> None:
    logits = random_logits(4, 100)
    rows = [row(temperature=1e-6, seed=seed) for seed in range(4)]
    assert tokens_of(logits, rows) == logits.argmax(dim=-1).tolist()
