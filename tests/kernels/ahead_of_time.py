"""Compile what an op launches for a GPU that is not there, and read what the code needs."""

import ast
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from nti.kernels import (
    cfg_attention_triton,
    geglu_triton,
    group_norm_triton,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = {
    "_cfg_attention_fwd_kernel": cfg_attention_triton,
    "_moments_kernel": group_norm_triton,
    "_group_norm_fwd_kernel": group_norm_triton,
    "_group_norm_bwd_kernel": group_norm_triton,
    "_geglu_fwd_kernel": geglu_triton,
    "_geglu_bwd_kernel": geglu_triton,
}

POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Resources:
    """Of one program: registers a thread, bytes of spills a thread, bytes of shared memory."""

    registers: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments that its op called it with."""

    kernel: Any
    args: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Recorder:
    """Stands in for a kernel: keeps the launches and runs none."""

    kernel: Any
    launches: list[Launch] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kw: self.launches.append(Launch(self.kernel, args, kw))


def launches_of(op: Callable[[], object]) -> list[Launch]:
    """What an op launches, from the op itself, so that what is compiled is what is shipped."""
    launches: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, module in KERNELS.items():
            patch.setattr(module, name, Recorder(getattr(module, name), launches))
        op()
    return launches


@contextmanager
def parsing_one_at_a_time() -> Iterator[None]:
    """Keep two threads from parsing Python at once, as compiling a kernel begins with that.

    CPython 3.11 counts the depth of both in one place, and then raises SystemError.
    """
    lock, parse = threading.Lock(), ast.parse

    def locked(*args: Any, **keywords: Any) -> ast.AST:
        with lock:
            return parse(*args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ast, "parse", locked)
        yield


def compile_for(launch: Launch, capability: int) -> Resources:
    """Compile one launch for a compute capability such as 80, specialised as its call would be."""
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.args, strict=False)) | launch.keywords
    options = {name: values.pop(name) for name in ("num_warps", "num_stages") if name in values}
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif name in launch.keywords or value is None or value == 1:
            signature[name] = "constexpr"
            constants[name] = value
        else:
            signature[name] = "i32"
        aligned = isinstance(value, torch.Tensor) or (signature[name] == "i32" and value % 16 == 0)
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spills = usage(compiled.asm["cubin"])
    return Resources(registers, spills, compiled.metadata.shared)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of local memory a thread: that is where spills go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", shown)
    assert found, shown
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
