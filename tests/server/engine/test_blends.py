"""Blends in the engine: which are refused, and which share a cache.

What they compute is tested with everything else: test_exactness_mixes.py.
"""

from collections.abc import Sequence
from pathlib import Path

from engines import greedy, run, store_of, tiny_engine
from msgspec import structs
from peft_adapters import save_lora
from peft_prompts import save_prompt

from weft.adapters.blend import Part
from weft.server.engine.messages import Generate, Tokens


def loras(folder: Path) -> tuple[Path, Path]:
    """Two of different ranks on overlapping modules."""
    one, two = ["q_proj", "v_proj"], ["q_proj", "down_proj"]
    return (
        save_lora(folder / "one", "llama", seed=1, r=2, target_modules=one),
        save_lora(folder / "two", "llama", seed=2, r=5, target_modules=two),
    )


def asked(name: str, prompt: tuple[int, ...], parts: Sequence[Part]) -> Generate:
    request = greedy(name, prompt, 16)
    return structs.replace(request, blend=tuple(parts))


def test_what_cannot_be_combined_ends_at_once(tmp_path: Path) -> None:
    soft = save_prompt(tmp_path / "soft", "llama", "PROMPT_TUNING", 5)
    other = save_prompt(tmp_path / "other", "llama", "PREFIX_TUNING", 5)
    with tiny_engine(tmp_path) as engine:
        one, two = (store_of(tmp_path).put(path) for path in (soft, other))
        blends = [(Part(one), Part(two)), (Part(one, 0.5),)]
        requests = [asked(str(i), (5, 6, 7), blend) for i, blend in enumerate(blends)]
        events = [event for event in run(engine, *requests) if isinstance(event, Tokens)]
        assert {event.error for event in events} == {"invalid_parameter"}


def test_blends_share_pages_with_equal_blends_only(tmp_path: Path) -> None:
    one, two = loras(tmp_path)
    prompt = tuple(range(30, 50))
    with tiny_engine(tmp_path) as engine:
        first, second = (store_of(tmp_path).put(path) for path in (one, two))
        blends = [
            (Part(first, 0.5), Part(second)),
            (Part(first, 0.5), Part(second)),
            (Part(second), Part(first, 0.5)),
            (Part(first, 0.4), Part(second)),
            (Part(first),),
        ]
        hits = []
        for number, blend in enumerate(blends):
            before = engine.scheduler.tables.prefix_hits
            run(engine, asked(str(number), prompt, blend))
            hits.append(engine.scheduler.tables.prefix_hits - before)
    assert hits == [0, 16, 0, 0, 0]
