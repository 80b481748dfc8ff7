"""A server with OpenAI's completions whose answers come as a test says: what, and when."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Part = tuple[float, dict[str, Any] | bytes]
"""Seconds after the part before, and an event, or bytes that are sent as they are."""


@dataclass
class ScriptedServer:
    """bodies: what was asked, in the order of its coming   connections: how many were opened"""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0


@dataclass(frozen=True)
class Script:
    """One answer.

    whole: it ends where its parts do   stays: the connection is kept for the next request
    """

    parts: Sequence[Part]
    status: int = 200
    whole: bool = True
    stays: bool = True


def tokens(*delays: float, each: int = 1) -> Script:
    """An answer of chunks with token ids, the last of which is followed by its usage."""
    chunk = {"index": 0, "text": "x" * each, "token_ids": [7] * each, "finish_reason": None}
    parts: list[Part] = [(delay, {"choices": [chunk]}) for delay in delays]
    count = each * len(delays)
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    end = {"index": 0, "text": "", "token_ids": [], "finish_reason": "length"}
    return Script([*parts, (0, {"choices": [end]}), (0, {"choices": [], "usage": usage})])


@asynccontextmanager
async def scripted_server(
    script: Callable[[dict[str, Any]], Script],
) -> AsyncIterator[ScriptedServer]:
    """Answers each body as `script` says."""
    seen = ScriptedServer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                seen.bodies.append(body)
                answer = script(body)
                await _answer(writer, answer)
                if not (answer.whole and answer.stays):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield seen


async def _answer(writer: asyncio.StreamWriter, script: Script) -> None:
    head = f"HTTP/1.1 {script.status} x\r\ncontent-type: text/event-stream\r\n"
    writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    for delay, event in script.parts:
        if delay:
            await asyncio.sleep(delay)
        data = event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode()
        data += b"" if isinstance(event, bytes) else b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
    if script.whole:
        writer.write(b"0\r\n\r\n")
        await writer.drain()
