from weft.kernels.memo import Memo


class Step(Memo):
    """A step whose derivations are counted."""

    def __init__(self) -> None:
        self.calls: list[int] = []


def tripled(step: Step, number: int) -> int | None:
    step.calls.append(number)
    return 3 * number if number else None


def test_a_derivation_is_made_once_for_each_argument() -> None:
    step = Step()
    results = [step.once(tripled, number) for number in (2, 2, 0, 0, 5)]
    assert results == [6, 6, None, None, 15]
    assert step.calls == [2, 0, 5]


def test_steps_share_nothing() -> None:
    steps = [Step(), Step()]
    assert [step.once(tripled, 4) for step in steps] == [12, 12]
    assert [step.calls for step in steps] == [[4], [4]]
