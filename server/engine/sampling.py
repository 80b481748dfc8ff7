"""Picks each row's next token from its logits. Knows no sequences' life, no pages, no text.

A row's token depends on its own logits, parameters, seed and position only, never on batch mates.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from weft.server.engine.messages import Sampling, TokenLogprobs
from weft.server.engine.readback import Readback

# Most truncated distributions end within this many tokens; the others pay for a full sort.
_CANDIDATES = 256
_MORE = 16
_BLOCK = 512
_MANY_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What one row's choice depends on beside its logits.

    tokens: the prompt and what was generated so far   prompt_len: how many of them are the prompt
    seed: of the row's random numbers   eos_token_ids: the model's own end tokens
    unread: so many more were generated that only the device knows yet
    """

    sampling: Sampling
    tokens: Sequence[int]
    prompt_len: int
    seed: int
    eos_token_ids: Sequence[int] = ()
    unread: int = 0

    @property
    def position(self) -> int:
        """Number of tokens before the one that is chosen."""
        return len(self.tokens) + self.unread

    @property
    def generated(self) -> int:
        """Number of tokens generated so far."""
        return self.position - self.prompt_len


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row's next token; or, with `error` set, why it has none.

    foreseen: whether it is what `Choices.tokens` has on the device
    """

    token: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    foreseen: bool = True


@dataclass(frozen=True, eq=False)
class Choices:
    """The next token of each row, on the device and on its way to the host.

    tokens: int64 [rows], each of the vocabulary; `read` tells which of them stand
    """

    tokens: Tensor
    _found: Readback
    _scored: Sequence[int]
    _tops: Sequence[int]
    _doubts: "_Doubts | None"

    def read(self) -> list[Sampled]:
        """The rows' tokens, waited for."""
        found, finite, *logprobs = self._found.take()
        tokens = found.tolist()
        told: dict[int, TokenLogprobs] = {}
        if self._scored:
            scored = _told([tokens[index] for index in self._scored], self._tops, *logprobs)
            told = dict(zip(self._scored, scored, strict=True))
        sampled = [
            Sampled(token, told.get(index)) if is_finite else Sampled(0, error=_NOT_FINITE)
            for index, (token, is_finite) in enumerate(zip(tokens, finite.tolist(), strict=True))
        ]
        return self._doubts.settled(sampled) if self._doubts else sampled


@dataclass(frozen=True, eq=False)
class _Doubts:
    """Which rows were drawn from too few candidates, and what it takes to draw them again."""

    unsure: Readback
    logits: Tensor
    rows: Sequence[SampleRow]
    candidates: int

    def settled(self, sampled: list[Sampled]) -> list[Sampled]:
        """The same with what these rows get from more candidates."""
        (unsure,) = self.unsure.take()
        again = [i for i in unsure.nonzero().flatten().tolist() if sampled[i].error is None]
        if not again:
            return sampled
        rows = [self.rows[index] for index in again]
        drawn = choose(self.logits[again], rows, self.candidates * _MORE).read()
        settled = sampled.copy()
        for index, choice in zip(again, drawn, strict=True):
            settled[index] = replace(choice, foreseen=choice.token == sampled[index].token)
        return settled


def choose(logits: Tensor, rows: Sequence[SampleRow], candidates: int = _CANDIDATES) -> Choices:
    """Chooses the next token of each row, of which there is one, without waiting for the device.

    logits: float32 [rows, vocabulary], left unchanged
    In order: minimum length, bias, penalties, then the largest (temperature 0) or temperature,
    min-p, top-k, top-p and a draw. Log-probabilities are of the raw logits.
    A row without a finite maximum gets an error, and no other row notices.
    """
    scores = _adjust(logits, rows)
    tokens, finite, unsure = _choose(scores, rows, candidates)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)  # what is not finite may point behind it
    scored = [index for index, row in enumerate(rows) if row.sampling.logprobs is not None]
    tops = [rows[index].sampling.logprobs or 0 for index in scored]
    logprobs: tuple[Tensor, ...] = ()
    if scored:
        at = _ids(logits, scored)
        logprobs = _logprobs(logits[at], tokens[at], max(tops))
    doubts = None if unsure is None else _Doubts(Readback(unsure), logits, rows, candidates)
    return Choices(tokens, Readback(tokens, finite, *logprobs), scored, tops, doubts)


def accepted(choices: Sequence[Sampled], drafts: Sequence[int]) -> list[Sampled]:
    """Of a row's choice and those of its drafts' rows the ones that stand: the first always.

    A later one only if all drafts before it are what was chosen there. So it was made after the
    same tokens, and with the same random number, as without drafts.
    """
    run = [choices[0]]
    for draft, choice in zip(drafts, choices[1:], strict=True):
        if run[-1].token != draft or run[0].error or choice.error:
            break
        run.append(choice)
    return run


_NOT_FINITE = "the model's logits are not finite"


def token_logprobs(
    logits: Tensor, tokens: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprobs]:
    """Log-probability of each row's token, and of the row's `tops` most likely ones.

    logits: float32 [rows, vocabulary], raw
    """
    return _told(tokens, tops, *_logprobs(logits, _ids(logits, tokens), max(tops)))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is random in, and fixed by, the seed and the position."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


def _logprobs(logits: Tensor, tokens: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each row's token, and of its `most` likeliest ones with their ids."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    values, ids = logprobs.topk(min(most, logits.shape[-1]), dim=-1)
    return chosen, values, ids


def _told(
    tokens: Sequence[int], tops: Sequence[int], chosen: Tensor, values: Tensor, ids: Tensor
) -> list[TokenLogprobs]:
    """What `_logprobs` found, of each row as many of the likeliest as are wanted."""
    best = zip(ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprobs(token, logprob, tuple(zip(ids[:top], values[:top], strict=True)))
        for token, logprob, top, (ids, values) in zip(
            tokens, chosen.tolist(), tops, best, strict=True
        )
    ]


# ---- what changes the scores


def _adjust(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The logits with bias, penalties and minimum length applied; a copy where any is needed."""
    changed = [index for index, row in enumerate(rows) if _is_adjusted(row)]
    if not changed:
        return logits
    scores = logits.clone()
    for index in changed:
        _adjust_row(scores[index], rows[index])
    return scores


def _is_adjusted(row: SampleRow) -> bool:
    sampling = row.sampling
    return bool(row.generated < sampling.min_tokens or sampling.logit_bias or sampling.looks_back)


def _adjust_row(scores: Tensor, row: SampleRow) -> None:
    """Changes one row's scores [vocabulary] in place."""
    sampling = row.sampling
    if row.generated < sampling.min_tokens:
        ends = set(sampling.stop_token_ids)
        ends.update(() if sampling.ignore_eos else row.eos_token_ids)
        scores.index_fill_(0, _ids(scores, list(ends)), float("-inf"))
    if sampling.logit_bias:
        ids = _ids(scores, list(sampling.logit_bias))
        scores.index_add_(0, ids, _floats(scores, list(sampling.logit_bias.values())))
    if sampling.repetition_penalty != 1:
        seen = list(set(row.tokens))
        old = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = torch.where(old > 0, old / penalty, old * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = Counter(row.tokens[row.prompt_len :])
        per_token = scores.new_tensor(list(counts.values())) * sampling.frequency_penalty
        scores[list(counts)] -= per_token + sampling.presence_penalty


# ---- the choice


def _choose(
    scores: Tensor, rows: Sequence[SampleRow], candidates: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each row's token, whether its largest score is finite, and whether its draw is unsure."""
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    if not drawn:
        tokens, maxima = _largest(scores)
        return tokens, maxima.isfinite(), None
    maxima = scores.amax(dim=-1)
    if len(drawn) == len(rows):
        tokens, unsure = _draw(scores, maxima, rows, candidates)
        return tokens, maxima.isfinite(), unsure
    at = _ids(scores, drawn)
    largest = _ids(scores, [i for i, row in enumerate(rows) if row.sampling.temperature <= 0])
    tokens = torch.empty(len(rows), dtype=torch.int64, device=scores.device)
    tokens[largest], _ = _largest(scores[largest])
    tokens[at], unsure = _draw(scores[at], maxima[at], [rows[index] for index in drawn], candidates)
    if unsure is not None:
        unsure = torch.zeros_like(tokens, dtype=torch.bool).index_copy_(0, at, unsure)
    return tokens, maxima.isfinite(), unsure


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each row's largest scores, and how large it is; both of shape [rows]."""
    whole = scores.shape[-1] // _BLOCK * _BLOCK
    if scores.is_cuda or whole < _MANY_BLOCKS * _BLOCK:
        tokens = scores.argmax(dim=-1)
        return tokens, scores.gather(-1, tokens[:, None]).squeeze(-1)
    # First a block, then a token in it: on a CPU a maximum takes a tenth of an argmax's time.
    blocks = scores[:, :whole].view(len(scores), -1, _BLOCK)
    maxima, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(len(scores)), block].argmax(dim=-1)
    tokens = block * _BLOCK + inside
    if whole == scores.shape[-1]:
        return tokens, maxima
    last, index = scores[:, whole:].max(dim=-1)
    return torch.where(last > maxima, whole + index, tokens), maxima.maximum(last)


def _draw(
    scores: Tensor, maxima: Tensor, rows: Sequence[SampleRow], candidates: int
) -> tuple[Tensor, Tensor | None]:
    """Draws each row's token from its truncated distribution.

    scores: [rows, vocabulary]   maxima: of each row   Returns int64 [rows], and which are unsure.
    """
    settings = [row.sampling for row in rows]
    draws = [uniform(row.seed, row.position) for row in rows]
    uniforms = _floats(scores, draws, torch.float64)[:, None]
    # The largest weight of a row is 1, so that min-p is a plain threshold.
    weights = F.pad(scores, (0, -scores.shape[-1] % _BLOCK), value=float("-inf"))
    weights.sub_(maxima[:, None])
    weights.div_(_column(scores, [s.temperature for s in settings])).exp_()
    if any(s.min_p > 0 for s in settings):
        weights.masked_fill_(weights < _column(scores, [s.min_p for s in settings]), 0.0)
    ranked = [index for index, s in enumerate(settings) if s.top_k > 0 or s.top_p < 1]
    if len(ranked) == len(rows):
        return _draw_ranked(weights, uniforms, settings, candidates)
    tokens = _pick_of_many(weights, uniforms)
    if not ranked:
        return tokens, None
    at, truncated = _ids(scores, ranked), [settings[index] for index in ranked]
    tokens[at], unsure = _draw_ranked(weights[at], uniforms[at], truncated, candidates)
    if unsure is not None:
        unsure = torch.zeros_like(tokens, dtype=torch.bool).index_copy_(0, at, unsure)
    return tokens, unsure


def _draw_ranked(
    weights: Tensor, uniforms: Tensor, settings: Sequence[Sampling], candidates: int
) -> tuple[Tensor, Tensor | None]:
    """Draws where top-k or top-p end the distribution, looking at the likeliest `candidates`.

    weights: [rows, vocabulary] unnormalised   uniforms: float64 [rows, 1]
    Returns int64 [rows], and for which rows more candidates may belong to the distribution.
    """
    everything = weights.shape[-1]
    ranked, ids = _rank(weights, candidates)
    boundary = ranked[:, -1].clone()
    last_rank = _column(weights, [s.top_k if s.top_k > 0 else everything for s in settings])
    ranked.masked_fill_(torch.arange(ranked.shape[-1], device=weights.device) >= last_rank, 0.0)
    reached = ranked.cumsum(dim=-1, dtype=torch.float64)
    total = torch.where(
        last_rank < everything, reached[:, -1:], weights.sum(dim=-1, keepdim=True).double()
    )
    top_p = _floats(weights, [s.top_p for s in settings], torch.float64)
    ranked.masked_fill_(reached - ranked >= total * top_p[:, None], 0.0)
    tokens = ids.gather(-1, _pick(ranked, uniforms)[:, None]).squeeze(-1)
    if candidates >= everything:
        return tokens, None
    # Where the cut is not clearly above the last candidate, more candidates or ties may belong.
    smallest = torch.where(ranked > 0, ranked, float("inf")).amin(dim=-1)
    return tokens, smallest <= boundary


def _rank(weights: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """The largest weights of each row, descending, equal ones by token id; and their ids."""
    if candidates >= weights.shape[-1]:
        ranked, ids = weights.sort(dim=-1, descending=True, stable=True)
        return ranked, ids
    ids = weights.topk(candidates, dim=-1).indices.sort(dim=-1).values
    ranked, order = weights.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ranked, ids.gather(-1, order)


def _pick_of_many(weights: Tensor, uniforms: Tensor) -> Tensor:
    """`_pick` over a whole vocabulary: first a block, by the blocks' sums, then a token in it."""
    blocks = weights.view(len(weights), -1, _BLOCK)
    sums = blocks.sum(dim=-1)
    block = _pick(sums, uniforms)[:, None]
    reached = sums.cumsum(dim=-1, dtype=torch.float64)
    inside = sums.gather(-1, block).double()
    skipped = reached.gather(-1, block) - inside
    within = ((uniforms * reached[:, -1:] - skipped) / inside).clamp(0.0, 1.0)
    chosen = blocks[torch.arange(len(blocks), device=weights.device), block.squeeze(-1)]
    return block.squeeze(-1) * _BLOCK + _pick(chosen, within)


def _pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The index at which each row's running sum of weights passes its draw; int64 [rows]."""
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    # Rounding must not lift the target to the total, past which nothing lies.
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(sums, target, right=True).squeeze(-1)
    return index.clamp_(max=weights.shape[-1] - 1)


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return _floats(like, values)[:, None]


def _floats(like: Tensor, values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


def _ids(like: Tensor, values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(like.device, non_blocking=True)
