"""llama.cpp's server, where it is on the PATH."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from serving.request import Request
from serving.target import ByLoraField

from sides.gguf import write_adapter, write_base
from sides.http_side import Command, HttpSide
from sides.side import Missing

PROGRAM = "llama-server"
CONTEXT_EACH = 128


class LlamaServer(HttpSide):
    """`llama-server` with the same weights as GGUF, whose matrices have the setting's dtype."""

    name = "llama.cpp"

    def version(self) -> str:
        """As it tells."""
        if shutil.which(PROGRAM) is None:
            raise Missing(f"{PROGRAM} is not on the PATH")
        done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
        lines = (done.stdout + done.stderr).splitlines()
        return next(line for line in lines if line.startswith("version")).removeprefix("version: ")

    def command(self, port: str) -> Command:
        """Writes the files that are not there yet."""
        setting = self.setting
        folder = setting.scratch / setting.dtype
        folder.mkdir(parents=True, exist_ok=True)
        base = folder / "base.gguf"
        if not base.exists():
            _whole(write_base, setting.base, base, setting.torch_dtype)
        adapters = {name: folder / f"{name}.gguf" for name in setting.adapters}
        for name, path in adapters.items():
            if not path.exists():
                _whole(write_adapter, setting.adapters[name], path, setting.torch_dtype)
        options = {
            "--model": str(base),
            "--port": port,
            "--parallel": str(setting.clients),
            "--threads": str(setting.threads),
            "--ctx-size": str(setting.clients * CONTEXT_EACH),
            "--lora": ",".join(str(path) for path in adapters.values()),
        }
        flat = [part for option in options.items() for part in option]
        return Command([PROGRAM, *flat, "--lora-init-without-apply"])

    def dialect(self) -> ByLoraField:
        """An adapter is named by its place in the command."""
        return ByLoraField({name: place for place, name in enumerate(self.setting.adapters)})

    def tokens(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """By its own API, one after another: OpenAI's does not tell the ids here."""
        return [self._tokens(request) for request in requests]

    def _tokens(self, request: Request) -> tuple[int, ...]:
        body = {
            **self.dialect().fields(request),
            "prompt": request.prompt,
            "n_predict": request.max_tokens,
            "temperature": 0.0,
            "return_tokens": True,
        }
        question = urllib.request.Request(
            f"{self.base_url}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(question, timeout=self.setting.deadline) as response:
            return tuple(json.load(response)["tokens"])


def _whole(
    write: Callable[[Path, Path, torch.dtype], None], source: Path, path: Path, dtype: torch.dtype
) -> None:
    """So that a write that was cut short leaves no file of that name."""
    part = path.with_suffix(".part")
    write(source, part, dtype)
    part.rename(path)
