"""How long one call of a kernel takes: by turns on a CPU, inside a captured graph on a GPU."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

LEAST_SECONDS = 0.02
REPLAYS = 5

Name = TypeVar("Name")
Call = Callable[[int], object]
"""Computes the problem of this number."""


def seconds_each(
    calls: Mapping[Name, Call], problems: int, device: torch.device, rounds: int
) -> dict[Name, list[float]]:
    """Seconds a call of each, once a round, in turns; a call is one of many over all problems.

    On a GPU the calls are captured first, so that starting kernels from Python isn't measured.
    """
    if device.type == "cuda":
        clocks = {name: _graph_clock(call, problems) for name, call in calls.items()}
    else:
        clocks = {name: _wall_clock(call, problems) for name, call in calls.items()}
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, clock in clocks.items():
            times[name].append(clock())
    return times


def _wall_clock(call: Call, problems: int) -> Callable[[], float]:
    for problem in range(problems):  # makes what a step's layers share
        call(problem)
    turn = 0

    def clock() -> float:
        nonlocal turn
        calls = 0
        start = time.perf_counter()
        while (seconds := time.perf_counter() - start) < LEAST_SECONDS or not calls:
            call(turn % problems)
            turn += 1
            calls += 1
        return seconds / calls

    return clock


def _graph_clock(call: Call, problems: int) -> Callable[[], float]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and makes what later calls share
        for problem in range(problems):
            call(problem)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for problem in range(problems):
            call(problem)
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock() -> float:
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end) / (REPLAYS * problems)

    return clock
