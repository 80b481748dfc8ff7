"""500 clients of a whole server leave, through HTTP, in every state in which one can be."""

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from peft_adapters import save_lora
from processes import children, is_busy, loader_of
from soak_results import keep_part
from tiny_models import save_tiny
from weft_process import WeftProcess

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
CANCELS, SEEDS = int(os.environ.get("WEFT_CANCELS", "500")), range(5)
CONTEXT, PLACES, ROWS = 4096, 2, 64
EACH_RECORD = 10
LONG = " ".join(["Once upon a time"] * 200)
"""A prompt of dozens of steps."""
FLAGS = ("--max-num-seqs", PLACES, "--max-num-batched-tokens", ROWS, "--adapter-host-memory", 0)
QUIET = ("--log-level", "error")
FILES = ("adapter_config.json", "adapter_model.safetensors")
CHECKS_SECONDS = 10.0
"""How often the engine looks at its invariants; /ready says what it found."""
State = Callable[[], Awaitable[None]]


class Visitor:
    """Brings a request to a state, and leaves."""

    def __init__(
        self, server: WeftProcess, client: httpx.AsyncClient, folders: list[Path], seed: int
    ) -> None:
        self.server = server
        self.client = client
        self.folders = folders
        self.seed = seed
        self.random = Random(seed)
        self.cancelled: Counter[str] = Counter()
        self.states: dict[str, State] = {
            "queued": self.queued,
            "waiting for a load": self.waiting_for_a_load,
            "prefill": self.prefill,
            "decode": self.decode,
            "decode, not streamed": self.whole,
            "several choices": self.several,
            "paused by slow reading": self.paused,
            "sending an upload": self.sending,
            "loading an upload": self.loading,
            "an evaluation": self.evaluation,
        }

    # ---- the states

    async def queued(self) -> None:
        async with self._streaming(), self._streaming():
            await self._leave(self._complete(9), self._is_waiting)

    async def waiting_for_a_load(self) -> None:
        loader = loader_of(self.server.pid)
        os.kill(loader, signal.SIGSTOP)
        # With room for one version and none in host memory, the others have to be loaded.
        more = self.random.choice([{}, {"stream": True}, {"n": 2}])
        model = await self._absent()
        await self._leave(self._complete(9, model=model, **more), self._is_waiting)
        os.kill(loader, signal.SIGCONT)

    async def prefill(self) -> None:
        prompt = f"{self.random.random()} {LONG}"
        stream = self.random.random() < 0.5
        asked = self._complete(9, prompt=prompt, stream=stream)
        await self._leave(asked, self._is_running)

    async def decode(self) -> None:
        async with self._streaming() as lines:
            for _ in range(self.random.randrange(20)):
                await anext(lines)

    async def whole(self) -> None:
        await self._leave(self._complete(CONTEXT - 100), self._is_running)

    async def several(self) -> None:
        if self.random.random() < 0.5:
            async with self._streaming(n=PLACES) as lines:
                for _ in range(self.random.randrange(20)):
                    await anext(lines)
        else:
            await self._leave(self._complete(CONTEXT - 100, n=PLACES), self._is_running)

    async def paused(self) -> None:
        # Of which a system takes in a part only: four megabytes on Linux.
        body = self._body(CONTEXT - 100, stream=True, logprobs=20, n=PLACES)
        with self._connection() as sock:
            self._send(sock, "POST", "/v1/completions", json.dumps(body).encode())
            await self._until(self._is_running)
            await self._until(self._is_paused)

    async def sending(self) -> None:
        with self._connection() as sock:
            self._send(sock, "PUT", "/v1/adapters/new", bytes(1 << 12), announced=1 << 16)
            await self._until(self._is_arriving)

    async def loading(self) -> None:
        loader = loader_of(self.server.pid)
        os.kill(loader, signal.SIGSTOP)
        folder = self.folders[-1]  # of which nothing is there
        files = {name: (name, (folder / name).read_bytes()) for name in FILES}
        await self._leave(self.client.put("/v1/adapters/new", files=files), self._is_waiting)
        os.kill(loader, signal.SIGCONT)

    async def evaluation(self) -> None:
        examples = [{"prompt": f"{n} {LONG[:2000]}", "completion": "end"} for n in range(20)]
        body = {"adapters": ["a0"], "examples": examples}
        begun = (await self.client.post("/v1/evaluations", json=body)).json()
        await self._until(self._is_running)
        gone = await self.client.delete(f"/v1/evaluations/{begun['id']}")
        assert gone.status_code == 200, gone.text

    # ---- what each leaves

    async def is_at_rest(self) -> bool:
        """Nothing runs, waits, is loaded or held, and the engine finds its invariants to hold."""
        gauges = await self._gauges()
        busy = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        if any(gauges[f"vllm:{name}"] for name in busy) or self._folders_of_uploads():
            return False
        if any(map(is_busy, children(loader_of(self.server.pid)))):
            return False
        listed = (await self.client.get("/v1/adapters")).json()["data"]
        ready = (await self.client.get("/ready")).status_code == 200
        names = {adapter["name"] for adapter in listed}
        return ready and names == {"a0", "a1"} and not any(a["refs"] for a in listed)

    async def visit(self, name: str) -> None:
        reached = False
        try:
            async with asyncio.timeout(60):
                await self.states[name]()
                reached = True
                await self._until(self.is_at_rest)
        except TimeoutError as error:
            error.add_note(f"{name}, reached: {reached}; {await self._gauges()}")
            raise
        self.cancelled[name] += 1

    # ---- means

    async def _leave(self, asked: Awaitable[Any], holds: Callable[[], Awaitable[bool]]) -> None:
        task = asyncio.ensure_future(asked)
        await self._until(holds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    @asynccontextmanager
    async def _streaming(self, **more: Any) -> AsyncIterator[AsyncIterator[str]]:
        """The lines of a stream that has begun; it is left at the end."""
        body = self._body(CONTEXT - 100, stream=True, **more)
        async with self.client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            await anext(lines)
            yield lines

    def _body(self, tokens: int, **more: Any) -> dict[str, Any]:
        model = self.random.choice(["llama", "a0", "a1"])
        asked = {"model": model, "prompt": "Once", "max_tokens": tokens, "ignore_eos": True}
        return asked | more

    def _complete(self, tokens: int, **more: Any) -> Awaitable[httpx.Response]:
        return self.client.post("/v1/completions", json=self._body(tokens, **more))

    def _connection(self) -> socket.socket:
        """A client whose system takes in as little as it can."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        url = urlsplit(self.server.url)
        sock.connect((url.hostname, url.port))
        return sock

    def _send(
        self, sock: socket.socket, method: str, path: str, body: bytes, announced: int = 0
    ) -> None:
        kind = "multipart/form-data; boundary=b" if announced else "application/json"
        part = b'--b\r\nContent-Disposition: form-data; name="adapter_model.safetensors"\r\n\r\n'
        head = f"{method} {path} HTTP/1.1\r\nHost: weft\r\nContent-Type: {kind}\r\n"
        length = announced or len(body)
        sock.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        sock.sendall((part if announced else b"") + body)

    async def _absent(self) -> str:
        """An adapter that is not on the device."""
        listed = (await self.client.get("/v1/adapters")).json()["data"]
        return next(adapter["name"] for adapter in listed if adapter["tier"] != "device")

    def _folders_of_uploads(self) -> list[str]:
        """Files of the server's that have no name any more: what uploads are written to."""
        found = []
        for descriptor in Path(f"/proc/{self.server.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(str(descriptor.readlink()))
        return [path for path in found if "versions" in path and path.endswith("(deleted)")]

    async def _gauges(self) -> dict[str, float]:
        lines = (await self.client.get("/metrics")).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("vllm:"))
        return {name.partition("{")[0]: float(value) for name, value in pairs}

    async def _is_waiting(self) -> bool:
        return (await self._gauges())["vllm:num_requests_waiting"] > 0

    async def _is_running(self) -> bool:
        return (await self._gauges())["vllm:num_requests_running"] > 0

    async def _is_paused(self) -> bool:
        gauges = await self._gauges()
        running = gauges["vllm:num_requests_running"]
        return not running and gauges["vllm:num_requests_waiting"] > 0

    async def _is_arriving(self) -> bool:
        return bool(self._folders_of_uploads())

    async def _until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        while not await holds():  # noqa: ASYNC110 - another process can only be asked
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("seed", SEEDS)
async def test_whoever_leaves_leaves_nothing_held(tmp_path: Path, seed: int) -> None:
    size = {"max_position_embeddings": CONTEXT}
    model, began = save_tiny("llama", tmp_path / "llama", **size), monotonic()
    targets = ["q_proj", "v_proj"]
    folders = [
        save_lora(tmp_path / f"a{n}", "llama", model=size, seed=n, r=4, target_modules=targets)
        for n in range(3)
    ]
    room = (folders[0] / FILES[1]).stat().st_size  # its header is smaller than another version
    adapters = [f"--adapter=a{n}={folders[n]}" for n in range(2)]
    flags = ["--dtype", "float32", "--adapter-memory", room, *FLAGS, *QUIET, *adapters]
    with WeftProcess("serve", model, *flags, state=tmp_path) as process:
        assert process.url
        async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:
            visitor = Visitor(process, client, folders, seed)
            names = list(visitor.states)
            for number in range(CANCELS // len(SEEDS)):
                await visitor.visit(names[number % len(names)])
                if (number + 1) % EACH_RECORD == 0 or number + 1 == CANCELS:
                    record(visitor, monotonic() - began)
            await asyncio.sleep(CHECKS_SECONDS + 1)
            assert await visitor.is_at_rest()
            answer = await client.post("/v1/completions", json=visitor._body(4))
            assert answer.status_code == 200


def record(visitor: Visitor, seconds: float) -> None:
    """Keeps what is known so far: the last of it takes a while."""
    found = {
        "cancels": visitor.cancelled.total(),
        "states": visitor.cancelled,
        "held_afterwards": 0,
        "seconds": round(seconds, 1),
    }
    keep_part("cancels", f"seed {visitor.seed}", found)
