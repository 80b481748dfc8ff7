"""Compiles the Triton launches of a call for GPUs that this machine need not have, and reads what
the compiler made of them."""

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Binary:
    """A kernel compiled for one architecture; `opcodes` are its instructions' names."""

    registers: int
    shared_bytes: int
    opcodes: frozenset[str]

    @property
    def spills(self) -> bool:
        """Whether registers are kept in memory: loads and stores of a thread's local memory."""
        return self.has("LDL|STL")

    def has(self, opcode: str) -> bool:
        """Whether an instruction's name begins with `opcode`, a regular expression."""
        return any(re.match(opcode, name) for name in self.opcodes)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: what it was called with."""

    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def compile(self, architecture: int, folder: Path) -> Binary:
        """Compiles for compute capability `architecture` (90 = 9.0) as the launch would."""
        constants = {name: v for name, v in self.keywords.items() if name not in OPTIONS}
        signature = dict.fromkeys(self.kernel.arg_names, "constexpr")
        attributes = {}
        for index, (name, value) in enumerate(
            zip(self.kernel.arg_names, self.arguments, strict=False)
        ):
            specializes = name not in _unspecialized(self.kernel)
            if value is None or (specializes and type(value) is int and value == 1):
                constants[name] = value
                continue
            signature[name] = _type(value)
            if specializes and _is_aligned(value):
                attributes[(index,)] = [["tt.divisibility", 16]]
        compiled = triton.compile(
            ASTSource(self.kernel, signature, constants, attributes),
            target=GPUTarget("cuda", architecture, 32),
            options={name: self.keywords[name] for name in OPTIONS if name in self.keywords},
        )
        cubin = folder / f"{self.kernel.__name__}.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        return _inspect(cubin, compiled.metadata.shared)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _unspecialized(kernel: Any) -> set[str]:
    return {parameter.name for parameter in kernel.params if parameter.do_not_specialize}


def _is_aligned(value: Any) -> bool:
    """Whether Triton would compile for a multiple of 16."""
    if isinstance(value, float):
        return False
    return (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0


def _inspect(cubin: Path, shared_bytes: int) -> Binary:
    usage = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin)
    registers = re.search(r"\bREG:(\d+)", usage)
    assert registers is not None, usage
    code = _run(triton.knobs.nvidia.nvdisasm.path, "-c", cubin)
    opcodes = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    return Binary(int(registers[1]), shared_bytes, frozenset(opcodes))


def _run(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True
    ).stdout


def launches_of(
    call: Callable[[], object], module: ModuleType, patch: pytest.MonkeyPatch
) -> list[Launch]:
    """The launches of the module's kernels that `call` asks for; none of them runs."""
    with recorded(module, patch) as launches:
        call()
    return launches


@contextmanager
def recorded(module: ModuleType, patch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """The launches of the module's kernels that are asked for meanwhile; none of them runs."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *arguments, **keywords: launches.append(
                Launch(self.kernel, arguments, keywords)
            )

    with patch.context() as context:
        for name, kernel in vars(module).copy().items():
            if isinstance(kernel, triton.JITFunction) and not name.startswith("_"):
                context.setattr(module, name, Recorder(kernel))
        yield launches
