"""A real process: waited for, asked for its time, ended with all that it started."""

import os
import select
import sys
from pathlib import Path

from sides.server_process import ServerProcess, free_port

SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
print(child.pid, flush=True)
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""


def test_a_server_is_waited_for_and_ends_with_its_children(tmp_path: Path) -> None:
    port, output = free_port(), tmp_path / "output"
    process = ServerProcess([sys.executable, "-c", SERVER, str(port)], {}, output)
    try:
        assert process.wait_for(f"http://127.0.0.1:{port}/")
        assert process.cpu_seconds() > 0
        child = os.pidfd_open(int(output.read_text().split()[0]))
    finally:
        process.stop()
    assert select.select([child], [], [], 30)[0]  # its end, which nobody here waits for
    os.close(child)
    assert process.cpu_seconds() == 0
    process.stop()


def test_a_server_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = [sys.executable, "-c", "import os; print(os.environ['GREETING'])"]
    process = ServerProcess(command, {"GREETING": "hello"}, output)
    assert not process.wait_for(f"http://127.0.0.1:{free_port()}/")
    assert output.read_text() == "hello\n"
    process.stop()


def test_a_server_that_is_unwell_is_not_ready(tmp_path: Path) -> None:
    code = (
        "import http.server, sys\n"
        "class Unwell(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_error(503)\n"
        "server = http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Unwell)\n"
        "server.handle_request()\n"
    )
    port = free_port()
    process = ServerProcess([sys.executable, "-c", code, str(port)], {}, tmp_path / "output")
    assert not process.wait_for(f"http://127.0.0.1:{port}/")
    process.stop()
