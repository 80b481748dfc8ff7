"""What the machine offers, and what follows from it: device, dtype, threads, free memory."""

import contextlib
import math
import mmap
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from weft.server.engine.unsupported import ModelUnsupported

GIB = 1 << 30
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Below this size a CPU spends more on converting than it saves on reading.
_BF16_PARAMETERS = 50_000_000
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one. Raises ModelUnsupported."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ModelUnsupported(f"--device {name} is not one of auto, cuda, cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelUnsupported("--device cuda, but this machine has no usable CUDA device")
    return device


def choose_dtype(name: str, device: torch.device, parameters: int) -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16 wherever that is the faster one."""
    if name != "auto":
        if name not in _DTYPES:
            raise ModelUnsupported(f"--dtype {name} is not one of auto, {', '.join(_DTYPES)}")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    return torch.bfloat16 if parameters >= _BF16_PARAMETERS and _cpu_has_bf16() else torch.float32


def default_threads() -> int:
    """Physical cores less one, so that HTTP and tokenizer threads don't stall the engine's."""
    return max(1, _physical_cores() - 1)


def free_memory(device: torch.device) -> int:
    """Bytes that the device can still give, within this process's limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_meminfo("MemAvailable")]
    cgroup = Path("/sys/fs/cgroup")
    limit, used = (_number(cgroup / f"memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        free.append(limit - used + _reclaimable(cgroup / "memory.stat"))
    return max(0, min(free))


def require_free(option: str, wanted: int, device: torch.device) -> None:
    """Raises ModelUnsupported where `option` asks for more bytes than the device has free."""
    free = free_memory(device)
    if wanted > free:
        raise ModelUnsupported(
            f"{option} asks for {wanted / GIB:.2f} GiB, but only {free / GIB:.2f} GiB are free on "
            f"{device}: lower it"
        )


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the kernel gives the memory when it is first used, in large pages."""
    nbytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not nbytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _cpu_has_bf16() -> bool:
    try:
        flags = re.search(
            r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        return False
    return flags is not None and not _BF16_FLAGS.isdisjoint(flags[1].split())


def _physical_cores() -> int:
    """Cores among the CPUs that this process may use, hardware threads counted once."""
    cpus = os.sched_getaffinity(0)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(siblings.format(cpu)).read_text() for cpu in cpus})
    except OSError:
        return len(cpus)


def _meminfo(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Path) -> int:
    """Page cache that the group holds and would give back."""
    found = (
        re.search(r"^inactive_file (\d+)$", stat.read_text(), re.MULTILINE)
        if stat.exists()
        else None
    )
    return int(found[1]) if found else 0
