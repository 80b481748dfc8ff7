"""A client of streams that costs next to nothing, so that what is timed is the server.

httpx looks through all of its open connections for each request: with hundreds of them the clients
would be what everybody waits for.
"""

import asyncio
import json
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """begin, first, end: when it was asked, its first event came, and it ended   body: chunked"""

    status: int
    headers: dict[str, str]
    body: bytes
    begin: float
    first: float
    end: float


async def post(url: str, path: str, key: str, body: dict[str, Any]) -> Answer:
    """One request on a connection of its own."""
    begin = monotonic()
    host = urlsplit(url)
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    try:
        writer.write(head.encode() + content)
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        pieces = [await reader.read(1 << 16)]
        first = monotonic()
        while piece := await reader.read(1 << 16):
            pieces.append(piece)
    finally:
        writer.close()
    status = int(status_line.split(" ")[1])
    return Answer(status, headers, b"".join(pieces), begin, first, monotonic())
