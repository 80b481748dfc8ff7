"""The command line's HTTP client against servers that misbehave."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft.server.cli.client import Client, Upload
from weft.server.cli.console import Refusal

Serve = Callable[[bytes, bool], str]
REFUSED = b'{"error": {"message": "Too large."}}'


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers one request with fixed bytes, and gives its address.

    It reads the request to its end, or only its first bytes before it closes.
    """
    threads = []

    def start(answer: bytes, whole: bool) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            with listener, listener.accept()[0] as peer:
                received = peer.recv(100)
                while whole and b"\r\n\r\n" not in received:
                    received += peer.recv(65536)
                peer.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join()


def answer(status: bytes, content: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


def test_an_upload_is_the_two_files_in_their_parts(tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(3 << 20)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    sent: list[int] = []
    upload = Upload.of(*(tmp_path / name for name in files), on_sent=sent.append)
    body = b"".join(upload)
    assert len(body) == len(upload)
    assert sum(sent) == sum(map(len, files.values()))
    parts = body.split(f"--{upload.boundary}".encode())
    assert [part.partition(b"\r\n\r\n")[2][:-2] for part in parts[1:-1]] == [*files.values()]


def test_a_refusal_in_the_middle_of_an_upload_is_heard(serve: Serve, tmp_path: Path) -> None:
    large = tmp_path / "adapter_model.safetensors"
    large.write_bytes(bytes(64 << 20))
    url = serve(answer(b"413 Too Large", REFUSED), False)
    with pytest.raises(Refusal, match=r"Too large\."):
        Client(url).call("PUT", "/v1/adapters/a", Upload.of(large))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (answer(b"200 OK", b"<html>"), "the answer is not JSON"),
        (answer(b"502 Bad Gateway", b"<html>"), "HTTP 502"),
        (b"SSH-2.0\r\n", "no answer"),
        (b"", "no answer"),
    ],
    ids=["page", "gateway", "no HTTP", "nothing"],
)
def test_what_is_no_weft_server(serve: Serve, said: bytes, words: str) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        Client(serve(said, True)).call("GET", "/v1/adapters")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "x"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(Refusal, match="--url") as caught:
        Client(url).call("GET", "/v1/adapters")
    assert caught.value.exit_code == 2
