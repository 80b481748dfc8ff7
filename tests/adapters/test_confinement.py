"""Each limit in a process of its own, which dies of it."""

import os
import signal
import subprocess
import sys

import pytest

MIB = 1 << 20


def run(code: str) -> "subprocess.CompletedProcess[str]":
    """Runs statements after the module's own names were imported."""
    script = f"from weft.adapters.confinement import *\nimport os, socket\n{code}"
    return subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False
    )


def said(code: str) -> str:
    done = run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TRIES = {
    "a network": "socket.socket()",
    "a Unix socket": "socket.socket(socket.AF_UNIX)",
    "a program": "os.execv('/bin/true', ['true'])",
    "a signal": "os.kill(os.getppid(), 0)",
    "its own end": "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("attempt", TRIES.values(), ids=TRIES)
def test_a_confined_process_has_no_way_out(attempt: str) -> None:
    code = f"assert confine()\ntry: {attempt}\nexcept PermissionError: print('refused')"
    assert said(code) == "refused"


def test_what_it_forks_is_confined_too() -> None:
    code = """confine()
if not os.fork():
    try: socket.socket()
    except PermissionError: os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))"""
    assert said(code) == "7"


def test_a_confined_process_still_does_its_work() -> None:
    code = """near, far = socket.socketpair()
confine()
file = os.memfd_create("x")
socket.send_fds(near, [b"x"], [file])
data, files, _, _ = socket.recv_fds(far, 1, 1)
print(data, len(files), open("/proc/self/comm").read().strip())"""
    assert said("name_process('some-name')\n" + code) == "b'x' 1 some-name"


def test_memory_is_counted_from_what_it_has() -> None:
    code = f"""has = bytearray({100 * MIB})
limit({100 * MIB}, 60, 60)
more = bytearray({60 * MIB})
try: bytearray({60 * MIB})
except MemoryError: print("no more")"""
    assert said(code) == "no more"


def test_processor_time_ends_it_also_within_one_call() -> None:
    assert run(f"limit({100 * MIB}, 1, 60)\nsum(range(10 ** 12))").returncode == -signal.SIGXCPU


def test_the_clock_ends_it_while_it_waits() -> None:
    code = f"limit({100 * MIB}, 60, 0.01)\nimport time\ntime.sleep(60)"
    assert run(code).returncode == -signal.SIGALRM


def test_others_come_first() -> None:
    code = "come_last(); print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_OTHER)"
    assert said(code) == f"{min(os.nice(0) + 10, 19)} True"
    assert said(f"limit({MIB}, 60, 60); print(open('/proc/self/oom_score_adj').read())") == "1000"


def test_it_keeps_one_file() -> None:
    code = """one, other = os.memfd_create("a"), os.memfd_create("b")
keep_only(other)
os.fstat(other)
try: os.fstat(one)
except OSError as error: print(error.strerror)"""
    assert said(code) == "Bad file descriptor"


def test_it_ends_with_its_parent() -> None:
    code = """read, write = os.pipe()
if not os.fork():
    if not os.fork():
        end_with_parent()
        os.write(write, b"x")
        import time; time.sleep(60)
    os.read(read, 1)
    os._exit(0)
os.close(write)
os.wait()
print(os.read(read, 1))"""
    assert said(code) == "b''"
