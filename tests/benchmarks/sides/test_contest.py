"""Turns of fake sides: who is asked what, when, and what becomes of those that fail."""

from collections.abc import Sequence

import pytest
from serving.request import Request
from sides.contest import Cell, Entry, Rules, agreeing, contest, steps
from sides.side import Answers, Missing, NotServed

MIXES = {
    "base": [Request((1, 2), None, 4), Request((3, 4), None, 4)],
    "adapters": [Request((1, 2), "a", 4), Request((3, 4), "b", 4)],
}
RULES = Rules(repeats=3, long=90.0, checked=1, check_tokens=2, warm_tokens=1)


class FakeSide:
    """Answers with the prompt's first id counted up; notes what it was asked."""

    def __init__(self, name: str, diary: list[str], seconds: float = 1.0) -> None:
        self.name = name
        self.diary = diary
        self.seconds = seconds
        self.cpu = 0.0

    def start(self) -> str:
        self.diary.append(f"{self.name} starts")
        return "1.0"

    def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        return [
            tuple(int(request.prompt[0]) + step for step in range(request.max_tokens))
            for request in requests
        ]

    def answer(self, requests: Sequence[Request]) -> Answers:
        tokens = sum(request.max_tokens for request in requests)
        self.diary.append(f"{self.name} {requests[0].adapter or 'base'} {tokens}")
        return Answers(self.seconds, tokens)

    def cpu_seconds(self) -> float:
        return self.cpu

    def stop(self) -> None:
        self.diary.append(f"{self.name} stops")


def run(*sides: FakeSide, rules: Rules = RULES) -> list[Entry]:
    told: list[str] = []
    entries = contest(sides, MIXES, rules, told.append)
    assert len(told) <= steps(len(sides), len(MIXES), rules)
    return entries


def test_sides_take_turns_and_each_turn_begins_with_another() -> None:
    diary: list[str] = []
    run(FakeSide("one", diary), FakeSide("two", diary), rules=Rules(2, 90.0, warm_tokens=1))
    assert diary == [
        *("one starts", "two starts"),
        *("one base 2", "two base 2", "one a 2", "two a 2"),  # warm: a token of each answer
        *("one base 8", "two base 8", "one a 8", "two a 8"),
        *("two base 8", "one base 8", "two a 8", "one a 8"),
        *("two stops", "one stops"),
    ]


def test_medians_are_those_of_whole_runs() -> None:
    class Uneven(FakeSide):
        def answer(self, requests: Sequence[Request]) -> Answers:
            self.seconds += 1.0
            return super().answer(requests)

    [entry] = run(Uneven("one", []))
    assert entry.version == "1.0"
    assert [run.seconds for run in entry.cells["base"].runs] == [4.0, 6.0, 8.0]
    assert entry.cells["base"].speed == 8 / 6.0
    assert entry.cells["base"].speeds == [8 / 4.0, 8 / 6.0, 8 / 8.0]


def test_a_missing_side_is_named_and_the_others_go_on() -> None:
    class Absent(FakeSide):
        def start(self) -> str:
            raise Missing("not on the PATH")

    absent, present = run(Absent("one", []), FakeSide("two", []))
    assert (absent.missing, absent.cells) == ("not on the PATH", {})
    assert len(present.cells["base"].runs) == RULES.repeats


def test_requests_that_a_side_cannot_answer_are_not_sent_again() -> None:
    class BaseOnly(FakeSide):
        def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
            if requests[0].adapter:
                raise NotServed("no adapters")
            return super().tokens(requests)

    diary: list[str] = []
    [entry] = run(BaseOnly("one", diary))
    assert entry.cells["adapters"].not_served == "no adapters"
    assert entry.cells["adapters"].speed is None
    assert not any(line.startswith("one a") for line in diary)
    assert len(entry.cells["base"].runs) == RULES.repeats


def test_what_did_not_finish_is_said_and_not_repeated() -> None:
    class Slow(FakeSide):
        def answer(self, requests: Sequence[Request]) -> Answers:
            answers = super().answer(requests)
            whole = requests[0].max_tokens == 1 or not requests[0].adapter
            return answers if whole else Answers(120.0, 5, "timeout: 2")

    [entry] = run(Slow("one", []))
    assert entry.cells["adapters"].failed == "timeout: 2"
    assert entry.cells["adapters"].speed is None
    assert len(entry.cells["adapters"].runs) == 1
    assert len(entry.cells["base"].runs) == RULES.repeats


def test_a_long_run_is_not_repeated() -> None:
    [entry] = run(FakeSide("one", [], seconds=91.0))
    assert len(entry.cells["base"].runs) == 1
    assert entry.cells["base"].speed == 8 / 91.0


def test_answers_are_compared_with_the_first_sides() -> None:
    class Other(FakeSide):
        def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
            return [(first, 99) for first, *_ in super().tokens(requests)]

    reference, other = run(FakeSide("one", []), Other("two", []))
    assert reference.cells["base"].agrees == 1.0
    assert other.cells["base"].agrees == 0.5


def test_tokens_agree_up_to_the_first_other_one() -> None:
    expected = [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert agreeing(expected, expected) == 1.0
    assert agreeing([(1, 2, 0, 4), (5, 6, 7, 8)], expected) == 6 / 8
    assert agreeing([(0, 2, 3, 4), (5, 6)], expected) == 2 / 8


def test_what_idle_sides_compute_is_noted() -> None:
    busy = FakeSide("busy", [])

    class Other(FakeSide):
        def answer(self, requests: Sequence[Request]) -> Answers:
            busy.cpu += 0.5
            return super().answer(requests)

    entries = run(busy, Other("other", [], seconds=2.0))
    assert [entry.idle for entry in entries] == [0.25, 0.0]


def test_all_are_stopped_when_one_breaks() -> None:
    class Broken(FakeSide):
        def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
            raise RuntimeError("broken")

    diary: list[str] = []
    with pytest.raises(RuntimeError, match="broken"):
        run(FakeSide("one", diary), Broken("two", diary))
    assert diary[-2:] == ["two stops", "one stops"]


def test_a_cell_without_runs_has_no_speed() -> None:
    assert Cell().speed is None
