"""Requests of all kinds, and all that an engine tells of them, to hold two engines together."""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from engines import TENANT, load, store_of
from every_method import BEGINNING, INVOCATION
from exactness import TOLERANCE
from peft_adapters import save_lora
from peft_prompts import save_prompt
from tiny_models import EOS_TOKEN_ID

from weft.adapters.blend import BASE, Blend, Part, alone
from weft.server.engine.engine import Engine
from weft.server.engine.messages import (
    Event,
    Generate,
    Loaded,
    Sampling,
    TokenLogprobs,
    Tokens,
)

REQUESTS = 24
FEW_WORDS = dict.fromkeys((30, 31, 32), 9.0)  # so that an answer repeats itself, now and then


@dataclass
class Told:
    """All that was said of one child."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    end: tuple[Any, ...] = ()


def told(events: list[Event]) -> dict[tuple[str, int], Told]:
    """By request and child, each of which ends once."""
    children: dict[tuple[str, int], Told] = {}
    for event in events:
        if isinstance(event, Tokens):
            child = children.setdefault((event.id, event.index), Told())
            assert not child.end
            child.tokens += event.tokens
            child.logprobs += event.logprobs
            if event.finish:
                child.end = (event.finish, event.stop_token, event.error, event.computed_tokens)
    return children


def adapters(folder: Path, arch: str) -> list[Blend]:
    """The base, and one of each kind that treats some rows otherwise than others."""
    targets = {"target_modules": ["q_proj", "up_proj"]}
    made = [
        save_lora(folder / "lora", arch, seed=1, r=4, target_modules=["q_proj", "down_proj"]),
        save_lora(
            folder / "alora", arch, seed=2, r=3, alora_invocation_tokens=list(INVOCATION), **targets
        ),
        save_prompt(folder / "prefix", arch, "PREFIX_TUNING", 7, seed=3),
        save_prompt(folder / "prompt", arch, "PROMPT_TUNING", 5, seed=4),
    ]
    lora, *others = (store_of(folder).put(path) for path in made)
    return [BASE, alone(lora), *map(alone, others), (Part(lora, 0.5), Part(others[2], 1.0))]


def asked(random: Random, blends: list[Blend], penalties: float = 0.3) -> list[Generate]:
    """Requests of all kinds; prompts of few different tokens, some of which begin alike.

    penalties: how likely each of them is
    """
    requests = []
    for number in range(REQUESTS):
        start = random.choice([(), BEGINNING, BEGINNING[:-1]])
        prompt = (*start, *random.choices(range(20, 26), k=random.randint(1, 25)))
        requests.append(
            Generate(
                id=str(number),
                tenant=TENANT,
                prompt=prompt,
                blend=random.choice(blends),
                n=random.choice([1, 1, 1, 3]),
                sampling=sampling(random, penalties),
            )
        )
    return requests


def sampling(random: Random, penalties: float) -> Sampling:
    def some(value: Any, otherwise: Any, chance: float = 0.3) -> Any:
        return value if random.random() < chance else otherwise

    max_tokens = random.choice([1, 2, 9, 30, 200])
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=some(min(5, max_tokens), 0),
        temperature=random.choice([0.0, 0.0, 0.3, 1.2]),
        top_p=some(0.8, 1.0),
        top_k=some(20, 0),
        min_p=some(0.05, 0.0),
        presence_penalty=some(0.7, 0.0, penalties),
        frequency_penalty=some(-0.4, 0.0, penalties),
        repetition_penalty=some(1.3, 1.0, penalties),
        logit_bias=random.choice([{}, {EOS_TOKEN_ID: 4.0}, FEW_WORDS, FEW_WORDS]),
        seed=random.randrange(99),
        stop_token_ids=some(tuple(range(100, 140)), ()),
        ignore_eos=some(True, False),
        logprobs=random.choice([None, 0, 3]),
        prompt_logprobs=some(1, None),
    )


def bring_in(engine: Engine, requests: list[Generate]) -> None:
    """Loads all adapters, so that who runs beside whom does not depend on when one arrives."""
    for digest in sorted({part.digest for request in requests for part in request.blend}):
        assert isinstance(load(engine, digest), Loaded)


def assert_same_told(events: list[Event], expected: dict[tuple[str, int], Told]) -> None:
    """The same tokens and ends, and the same log-probabilities but for rounding."""
    found = told(events)
    assert found.keys() == expected.keys()
    for child, wanted in expected.items():
        got = found[child]
        assert (got.tokens, got.end) == (wanted.tokens, wanted.end), child
        assert len(got.logprobs) == len(wanted.logprobs)
        for one, other in zip(got.logprobs, wanted.logprobs, strict=True):
            assert one.token == other.token
            assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
            assert [p for _, p in one.top] == pytest.approx(
                [p for _, p in other.top], abs=TOLERANCE
            )
