"""vLLM's CPU wheel, in an environment of its own."""

import subprocess
from pathlib import Path

from serving.target import ByModel

from sides.http_side import Command, HttpSide
from sides.side import Missing, Setting

RANK = 16


class VllmServer(HttpSide):
    """`vllm serve` of the environment whose interpreter is given."""

    name = "vLLM CPU"

    def __init__(self, setting: Setting, interpreter: Path | None) -> None:
        super().__init__(setting)
        self._interpreter = interpreter

    def version(self) -> str:
        """Of vLLM and of the torch beside it."""
        if self._interpreter is None:
            raise Missing("no environment given (--vllm)")
        if not self._interpreter.exists():
            raise Missing(f"{self._interpreter} does not exist")
        ask = "from importlib.metadata import version as v; print(v('vllm'), 'torch', v('torch'))"
        done = subprocess.run(
            [self._interpreter, "-c", ask], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Missing(f"no vllm in {self._interpreter}'s environment")
        return done.stdout.strip()

    def command(self, port: str) -> Command:
        """Both threads compute: by itself vLLM keeps a core for its API, and is slower."""
        setting = self.setting
        assert self._interpreter is not None
        options = {
            "--port": port,
            "--dtype": setting.dtype,
            "--served-model-name": "base",
            "--max-num-seqs": str(setting.clients),
            "--max-model-len": "256",
            "--max-loras": str(len(setting.adapters)),
            "--max-lora-rank": str(RANK),
            "--uvicorn-log-level": "warning",
        }
        flat = [part for option in options.items() for part in option]
        modules = [f"{name}={path}" for name, path in setting.adapters.items()]
        return Command(
            [
                *(str(self._interpreter.with_name("vllm")), "serve", str(setting.base), *flat),
                *("--enforce-eager", "--no-enable-prefix-caching"),
                *("--enable-lora", "--lora-modules", *modules),
            ],
            {
                "VLLM_TARGET_DEVICE": "cpu",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": f"0-{setting.threads - 1}",
                "OMP_NUM_THREADS": str(setting.threads),
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
            },
        )

    def dialect(self) -> ByModel:
        """The adapter's name is the model."""
        return ByModel("base")
