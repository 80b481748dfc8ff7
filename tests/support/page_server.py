"""A server of scripted answers behind the real page: each model id says how its stream behaves."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from weft.server.api.page import page_routes

DIGEST = "c0ffee" + "0" * 58


@dataclass
class PageServer:
    """What the scripted server offers and what it was asked.

    Models: "breaks" sends an error event after its first token, "ends" closes without [DONE],
    "refuses" answers 404, "hangs" never sends a second token; any other echoes, word by word.
    """

    adapters: tuple[str, ...] = ("pirate", "json")
    key: str | None = None
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    abandoned: threading.Event = field(default_factory=threading.Event)

    def app(self, examples: Path | None) -> FastAPI:
        """The ASGI app: the page's own routes and the two API routes that it uses."""
        app = FastAPI()
        app.include_router(page_routes(examples))

        @app.get("/v1/models")
        async def models(request: Request) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": {"message": "The API key is missing."}}, 401)
            rows = [{"id": name, "parent": "tiny"} for name in self.adapters]
            return JSONResponse({"data": [*rows, {"id": "tiny", "parent": None}]})

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.asked.append(body)
            if body["model"] == "refuses":
                return JSONResponse({"error": {"message": "The model does not exist."}}, 404)
            headers = {"X-Adapter-ID": body["model"] + "@1", "X-Adapter-Digest": DIGEST}
            return StreamingResponse(self._stream(body), 200, headers, "text/event-stream")

        return app

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        model, words = body["model"], body["messages"][0]["content"].split()
        for position, word in enumerate([f"{model}:", *words]):
            yield _event({"choices": [{"delta": {"content": " " * bool(position) + word}}]})
            if model == "breaks":
                yield _event({"error": {"message": "The engine is restarting."}})
                return
            if model == "ends":
                return
            if model == "hangs":
                await self._hang()
        yield _event({"choices": [], "usage": {"completion_tokens": len(words) + 1}})
        yield "data: [DONE]\n\n"

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.abandoned.set()


@contextmanager
def serving(server: PageServer, examples: Path | None = None) -> Iterator[PageServer]:
    """Serves on a free port of this machine for as long as the context lasts."""
    listener = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    config = uvicorn.Config(
        server.app(examples), log_level="error", lifespan="off", timeout_graceful_shutdown=1
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
