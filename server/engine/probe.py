"""Made-up sequences on pages of their own, to try a model before the first request comes."""

from collections.abc import Sequence as Items

from weft.adapters.tenancy import TenantContext
from weft.server.engine.messages import Generate, Sampling
from weft.server.engine.sequence import Sequence
from weft.server.engine.step_plan import Scheduled, StepPlan

_TENANT = TenantContext("_probe")


def prompt(length: int, vocabulary: int) -> tuple[int, ...]:
    """Fixed token ids that hardly repeat."""
    return tuple((7919 * i * i + 104729 * i + 17) % vocabulary for i in range(length))


def probes(prompts: Items[tuple[int, ...]], page_size: int) -> list[Sequence]:
    """The prompts as sequences; their pages alternate, descending, and end at page 1."""
    sequences = [_sequence(tokens, index) for index, tokens in enumerate(prompts)]
    page = pages_for(prompts, page_size)
    while short := [s for s in sequences if len(s.pages) * page_size < len(s.tokens)]:
        for seq in short:
            page -= 1
            seq.pages.append(page)
    return sequences


def pages_for(prompts: Items[tuple[int, ...]], page_size: int) -> int:
    """Pages that a cache needs for the prompts' probes, page 0 included."""
    return 1 + sum(-(-len(tokens) // page_size) for tokens in prompts)


def whole(sequences: Items[Sequence]) -> StepPlan:
    """One step that computes all the sequences from their first token to their last."""
    return StepPlan(tuple(Scheduled(seq, 0, len(seq.tokens), samples=True) for seq in sequences))


def _sequence(tokens: tuple[int, ...], index: int) -> Sequence:
    request = Generate(
        id=f"probe-{index}",
        tenant=_TENANT,
        prompt=tokens,
        sampling=Sampling(max_tokens=1),
    )
    return Sequence(request, index, index, list(tokens))
