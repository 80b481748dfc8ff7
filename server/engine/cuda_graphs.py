"""Steps captured as CUDA graphs, and the memory that they take. Knows no models."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Step = Callable[[], None]


class CudaGraphs:
    """Captures steps on one device. Their graphs compute in one pool of memory, one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, step: Step) -> Step:
        """Captures what `step` launches; returns what launches it again, on the current stream.

        Raises RuntimeError where the step waits for the device.
        """
        self._rehearse(step)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads may allocate and wait meanwhile
        # A capture that fails leaves its stream the current one; the outer context does not.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode),
        ):
            step()
        graph.replay()  # the first one brings it to the device
        return graph.replay

    def _rehearse(self, step: Step) -> None:
        """Compiles and makes what the capture must find, and finds what would spoil it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
            with _waits_raise():
                step()
        current.wait_stream(self._stream)


def bytes_of_captures(
    capture: Callable[[CudaGraphs], object], device: torch.device
) -> tuple[int, int]:
    """Bytes that captures take: what they compute in, which more of them share, and beside that.

    capture: makes some, returns what holds them, and can be called twice
    The first time also loads kernels; so what the driver keeps of graphs is what the second takes.
    """
    record = CudaGraphs(device)
    torch.cuda.empty_cache()
    reserved = [torch.cuda.memory_reserved(device)]
    beside, held = [], []
    for _ in range(2):
        held.append(capture(record))
        torch.cuda.synchronize(device)
        free, total = torch.cuda.mem_get_info(device)
        reserved.append(torch.cuda.memory_reserved(device))
        beside.append(total - free - reserved[-1])
    held.clear()
    torch.cuda.empty_cache()
    return reserved[1] - reserved[0], max(0, beside[1] - beside[0])


@contextmanager
def _waits_raise() -> Iterator[None]:
    """Calls of torch that wait for the device raise RuntimeError meanwhile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this does not find every wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
