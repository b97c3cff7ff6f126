"""Functions as packages that libtorch loads: machine code, made ahead of time, without weights."""

import contextlib
import ctypes
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import aoti_compile_and_package, aoti_load_package, mkldnn_ir
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch.export import ExportedProgram

__all__ = ["load_package", "write_package"]

OPTIONS = {
    # The weights are loaded once, for all packages.
    "aot_inductor.package_constants_in_so": False,
    # A program that loads it brings libtorch_cpu, and need not have what else PyTorch links.
    "aot_inductor.link_libtorch": False,
    # With as many threads as the caller sets. Else the number at export is compiled in: sums have
    # places for so many threads, and more of them write past the end.
    "cpp.dynamic_threads": True,
}


def write_package(program: ExportedProgram, path: Path) -> None:
    """Compile a program for this processor, which takes a minute or more.

    Warns where the compiler's test of the processor's vectors fails, as once in a cold cache.
    """
    if not pick_vec_isa():
        warnings.warn(
            "export: the compiler found no vector instructions, so packages will be slow: export"
            " again",
            stacklevel=2,
        )
    with _turned_weights_in_place():
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=OPTIONS)


@contextlib.contextmanager
def _turned_weights_in_place() -> Iterator[None]:
    """Let oneDNN's products read a turned matrix as it lies, which oneDNN can.

    A backward pass multiplies by the turned weights. The compiler lays each out anew at every call:
    all of a UNet's in an iteration.
    """

    def in_place(kind: Any, x: Any) -> Any:
        turned = len(x.get_size()) == 2 and x.get_stride()[0] == 1
        return x if turned else super(kind, kind).require_contiguous(x)

    with contextlib.ExitStack() as patches:
        for name in ("LinearUnary", "LinearBinary"):
            kind = getattr(mkldnn_ir, name, None)
            if kind is not None:
                rule = classmethod(in_place)
                patches.enter_context(mock.patch.object(kind, "require_contiguous", rule))
        yield


def load_package(path: Path, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
    """Load a package, and give it its weights, which it does not copy.

    A package that runs without weights crashes, so there is no other way to one here.

    Args:
        path: of the package.
        weights: by name, contiguous, of which it takes those that it uses. They have to live as
            long as it does.

    """
    _share_libtorch()
    package: Any = aoti_load_package(str(path))
    names = package.get_constant_fqns()
    package.load_constants(
        {name: weights[name] for name in names}, check_full_update=True, user_managed=True
    )
    run: Callable[..., Any] = package
    return run


@cache
def _share_libtorch() -> None:
    """Let packages find libtorch's functions, as `OPTIONS` does not link them."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
