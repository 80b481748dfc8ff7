"""What a process that reads uploads may do: so much memory and time, no network, no programs.

The kernel enforces it; nothing here can be undone by the process itself.
"""

import contextlib
import ctypes
import logging
import os
import platform
import resource
import signal
import struct
from pathlib import Path

log = logging.getLogger(__name__)

_NICENESS = 10
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_EPERM = 1
_X32 = 0x4000_0000
# Audit architecture, then: socket, connect, bind, listen, accept, accept4, execve, execveat, kill,
# tkill, tgkill, pidfd_send_signal, ptrace, process_vm_writev, io_uring_setup.
_FORBIDDEN = {
    "x86_64": (0xC000003E, 41, 42, 49, 50, 43, 288, 59, 322, 62, 200, 234, 424, 101, 311, 425),
    "aarch64": (
        0xC00000B7,
        198,
        203,
        200,
        201,
        202,
        242,
        221,
        281,
        129,
        130,
        131,
        424,
        117,
        271,
        425,
    ),
}


def name_process(name: str) -> None:
    """What tools like `ps` and `top` call this process, at most 15 letters."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def keep_only(file: int) -> None:
    """Closes all descriptors of this process but `file` and the standard ones."""
    os.closerange(3, file)
    os.closerange(file + 1, os.sysconf("SC_OPEN_MAX"))


def end_with_parent() -> None:
    """Lets this process be killed when the thread that forked it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(memory: int, seconds: int, wall_seconds: float) -> None:
    """Lets this process fail where it takes more.

    memory: bytes beyond what it has now, then allocations fail
    seconds: of processor time, then SIGXCPU   wall_seconds: by the clock, then SIGALRM
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    addresses = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGXCPU, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if any process must go, this one


def come_last() -> None:
    """Leaves the processor to whoever wants it, with all that this process forks.

    Real-time processes know no niceness.
    """
    policy = os.sched_getscheduler(0)
    if policy in (os.SCHED_FIFO, os.SCHED_RR):
        os.sched_setscheduler(0, policy, os.sched_param(os.sched_get_priority_min(policy)))
    os.nice(_NICENESS)


def confine() -> bool:
    """Takes network, other programs and signals from this process and all that it forks.

    Returns whether this machine can do that.
    """
    if platform.machine() not in _FORBIDDEN:
        log.warning("no system calls are forbidden on %s", platform.machine())
        return False
    code = _filter(*_FORBIDDEN[platform.machine()])
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    )
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))
    except OSError as error:
        log.warning("system calls cannot be forbidden here: %s", error.strerror)
        return False
    return True


def _filter(architecture: int, *calls: int) -> bytes:
    """A BPF program that lets the forbidden calls, and those of other ABIs, fail with EPERM."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF_0000, 0x0005_0000 | _EPERM
    left = len(calls)
    code = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, left + 3, architecture),
        (load, 0, 0, 0),  # the call's number
        (at_least, left + 1, 0, _X32),
    ]
    code += [(equal, left - at, 0, call) for at, call in enumerate(calls)]
    code += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("<HBBI", *line) for line in code)


def _prctl(option: int, first: int, second: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *map(ctypes.c_ulong, (first, second, 0, 0))):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
