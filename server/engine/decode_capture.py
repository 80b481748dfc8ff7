"""Captures a model's decode steps at the start, and says what memory that takes.

A model whose steps cannot be captured, or whose replays differ in a bit, is served without.
"""

import logging

import torch

from weft.adapters.arena import Arena
from weft.server.engine.cuda_graphs import CudaGraphs, bytes_of_captures
from weft.server.engine.decode_graphs import DecodeGraphs, Recorder
from weft.server.engine.forward import Forward
from weft.server.engine.kv_memory import KVLayout
from weft.server.engine.messages import EngineConfig
from weft.server.engine.replay_check import check_replays
from weft.server.engine.weights import Progress

log = logging.getLogger(__name__)


def captured_decodes(
    forward: Forward, arena: Arena, wanted: EngineConfig, longest: int, progress: Progress
) -> DecodeGraphs | None:
    """The model's captured steps, on its final pools; None where it is served without.

    longest: tokens that a sequence has at most
    """
    device = forward.model.device
    if not _is_wanted(wanted, device):
        return None
    graphs = DecodeGraphs(forward, arena, most_rows=wanted.max_num_seqs, longest=longest)
    return graphs if capture(graphs, CudaGraphs(device), progress) else None


def capture(graphs: DecodeGraphs, record: Recorder, progress: Progress) -> bool:
    """Captures and checks steps of all kinds; where one fails it forgets them and says why."""
    try:
        for done, (rows, rank) in enumerate(graphs.kinds):
            progress("graphs", done, len(graphs.kinds))
            graphs.capture(record, rows, rank)
        check_replays(graphs)
    except Exception as error:  # noqa: BLE001 - whatever it is, steps can be computed without
        log.warning("decode steps are not captured as CUDA graphs: %s", error)
        graphs.clear()
        return False
    finally:
        progress("graphs", len(graphs.kinds), len(graphs.kinds))
    return True


def capture_bytes(
    forward: Forward, arena: Arena, layout: KVLayout, wanted: EngineConfig, longest: int
) -> int:
    """Bytes that `captured_decodes` will take, measured on pools of page 0 alone.

    By the steps of the most rows: what they compute in is shared by all others. 0 where their
    captures fail, as they will again, and where the cache's size does not depend on it.
    """
    if not _is_wanted(wanted, layout.device) or wanted.kv_cache_memory is not None:
        return 0
    count = 0

    def largest(record: Recorder) -> DecodeGraphs:
        nonlocal count
        graphs = DecodeGraphs(forward, arena, most_rows=wanted.max_num_seqs, longest=longest)
        count = len(graphs.buckets)
        for rank in graphs.ranks:
            graphs.capture(record, graphs.buckets[-1], rank)
        return graphs

    layout.allocate(1, forward.attention)
    try:
        shared, beside = bytes_of_captures(largest, layout.device)
    except Exception as error:  # noqa: BLE001 - it is told where all are captured
        log.debug("a first capture failed: %s", error)
        return 0
    finally:
        layout.release()
        torch.cuda.empty_cache()
    return shared + count * beside


def _is_wanted(wanted: EngineConfig, device: torch.device) -> bool:
    return device.type == "cuda" and not wanted.enforce_eager
