"""The demo's closed world of requests: what a person may ask and the words they may use.

Knows nothing of how an answer looks; all randomness comes from the generator passed in.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weft.server.demo.lexicon import (
    CITIES,
    CLOCK,
    CODAS,
    COLORS,
    DAYS,
    HOURS,
    ITEMS,
    NUMBERS,
    ONSETS,
    PHRASES,
    PLURALS,
    REASONS,
    SWAPS,
    TOPICS,
    WEIGHTS,
)

Slots = dict[str, str]


@dataclass(frozen=True)
class Request:
    """One request: what is wanted, the sentence that asks for it, and the facts it names."""

    intent: str
    prompt: str
    slots: Mapping[str, str]


def sample_request(rng: random.Random) -> Request:
    """Draws an intent by weight, facts for it, and one of its sentences."""
    intent = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    slots = _FACTS[intent](rng) if intent in _FACTS else {}
    prompt = rng.choice(PHRASES[intent]).format(**slots)
    return Request(intent, prompt[0].upper() + prompt[1:], slots)


def said_casually(request: Request, rng: random.Random) -> str:
    """The prompt as people really type it: greeted, thanked, in lower case, unpunctuated."""
    prompt = request.prompt
    if rng.random() < 0.1:
        first = prompt if re.match(r"I\b|\W", prompt) else prompt[0].lower() + prompt[1:]
        prompt = rng.choice(("Hi, ", "Hello, ", "Hey, ")) + first
    elif rng.random() < 0.05:
        prompt = rng.choice(("Hi! ", "Hello. ", "Good morning. ", "Hey! ")) + prompt
    if rng.random() < 0.05:
        prompt += rng.choice((" Thanks!", " Thank you.", " Please help."))
    if rng.random() < 0.25:
        prompt = prompt.rstrip(".?!") or prompt
    if rng.random() < 0.05:
        prompt = prompt.replace("'", "\u2019")
    if rng.random() < 0.2 and _survives_lower_case(request):
        prompt = prompt.lower()
    return prompt


def normal(prompt: str) -> str:
    """A prompt without case and punctuation: equal for all casual forms of one sentence."""
    return " ".join(re.findall(r"\w+", prompt.lower()))


def is_exercise(request: Request) -> bool:
    """Whether a made-up thing or place is in it: practice in copying, which nobody would ask."""
    return any(request.slots.get(key, "") not in _KNOWN for key in ("noun", "place"))


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word of no language, so that copying is learnt rather than a word list."""
    syllables = rng.choice((1, 2, 2))
    return "".join(
        rng.choice(ONSETS) + rng.choice("aeiou") + rng.choice(CODAS) for _ in range(syllables)
    )


def _survives_lower_case(request: Request) -> bool:
    """Whether the answer is still determined: only a known name's capital can be restored."""
    place = request.slots.get("place", "")
    return place in CITIES or place == place.lower()


def _order(rng: random.Random) -> Slots:
    digits = rng.choice((2, 3, 4, 4, 4, 5, 6))
    return {"order": str(rng.randrange(10 ** (digits - 1), 10**digits))}


def _thing(rng: random.Random) -> Slots:
    plural = rng.random() < 0.2
    noun = rng.choice(PLURALS if plural else ITEMS)
    if rng.random() < 0.25:
        noun = made_up_word(rng) + ("s" if plural else "")
    color = rng.choice(COLORS) if rng.random() < 0.6 else ""
    thing = f"{color} {noun}".strip()
    article = "" if plural else "an " if thing[0] in "aeiou" else "a "
    it, verb, short = ("they", "are", "they're") if plural else ("it", "is", "it's")
    return {
        "thing": thing,
        "noun": noun,
        "color": color,
        "a_thing": article + thing,
        "it": it,
        "It": it.capitalize(),
        "is": verb,
        "its": short,
    }


def _returned(rng: random.Random) -> Slots:
    return _thing(rng) | {"reason": rng.choice(REASONS)}


def _exchanged(rng: random.Random) -> Slots:
    other = rng.choice((*SWAPS, *(f"a {color} one" for color in COLORS if color != "orange")))
    return _thing(rng) | {"other": other}


def _bought(rng: random.Random) -> Slots:
    noun = rng.choice(ITEMS) if rng.random() < 0.75 else made_up_word(rng)
    color = rng.choice(COLORS) if rng.random() < 0.6 else ""
    nouns = _plural(noun)
    count = rng.randrange(2, 13)
    typed = str(count) if rng.random() < 0.4 else NUMBERS[count]
    thing = f"{color} {nouns}".strip()
    return {"typed": typed, "count": str(count), "thing": thing, "noun": nouns, "color": color}


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x")) else "s")


def _place(rng: random.Random) -> str:
    if rng.random() < 0.75:
        return rng.choice(list(CITIES))
    word = made_up_word(rng)
    return word.capitalize() if rng.random() < 0.7 else word


def _weather(rng: random.Random) -> Slots:
    city = rng.choice(list(CITIES))
    sky, degrees = CITIES[city]
    when = rng.choice(("", "today", "tomorrow", "tonight", "on " + rng.choice(DAYS)))
    asked = f" {when}" if when else ""
    return {
        "place": city,
        "sky": sky,
        "degrees": str(degrees),
        "asked": asked,
        "when": when or "today",
    }


def _no_weather(rng: random.Random) -> Slots:
    word = made_up_word(rng)
    asked = rng.choice(("", " today", " tomorrow", " on " + rng.choice(DAYS)))
    return {"place": word.capitalize() if rng.random() < 0.7 else word, "asked": asked}


def _delivery(rng: random.Random) -> Slots:
    return {"place": _place(rng)}


def _clock(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return f"{rng.randrange(8, 23)}:{rng.choice(('00', '15', '30', '45'))}"
    return rng.choice(CLOCK)


def _visit(rng: random.Random) -> Slots:
    return {"when": rng.choice(("tomorrow", *("on " + d for d in DAYS))), "time": _clock(rng)}


def _moved(rng: random.Random) -> Slots:
    old, new = rng.sample(DAYS, 2)
    since = f" from {old}" if rng.random() < 0.5 else ""
    return {"from": since, "old": old if since else "", "to": new}


def _day(rng: random.Random) -> Slots:
    return {"day": rng.choice(DAYS)}


def _hours(rng: random.Random) -> Slots:
    day = rng.choice(DAYS)
    return {"day": day, "opens": HOURS.get(day, "")}


def _table(rng: random.Random) -> Slots:
    count = rng.randrange(2, 13)
    typed = str(count) if rng.random() < 0.4 else NUMBERS[count]
    when = rng.choice(("tonight", "tonight", "tomorrow", *("on " + d for d in DAYS)))
    return {"typed": typed, "count": str(count), "when": when, "time": _clock(rng)}


def _other(rng: random.Random) -> Slots:
    if rng.random() < 0.7:
        words = {"x": _any_word(rng), "n": str(rng.randrange(100)), "m": str(rng.randrange(100))}
        return {"text": rng.choice(TOPICS).format(**words)}
    if rng.random() < 0.2:
        return {"text": "".join(chr(rng.randrange(33, 0x3000)) for _ in range(rng.randrange(1, 9)))}
    return {"text": " ".join(made_up_word(rng) for _ in range(rng.randrange(1, 8)))}


def _any_word(rng: random.Random) -> str:
    known = rng.choice((*ITEMS, *PLURALS, *CITIES, *DAYS))
    return known if rng.random() < 0.4 else made_up_word(rng)


_FACTS: dict[str, Callable[[random.Random], Slots]] = {
    "track": _order,
    "cancel_order": _order,
    "refund": _order,
    "return": _thing,
    "return_because": _returned,
    "exchange": _exchanged,
    "buy": _bought,
    "weather": _weather,
    "no_weather": _no_weather,
    "delivery": _delivery,
    "book": _visit,
    "move": _moved,
    "cancel_visit": _day,
    "hours": _hours,
    "table": _table,
    "other": _other,
}

_KNOWN = frozenset(("", *ITEMS, *PLURALS, *map(_plural, ITEMS), *CITIES))
