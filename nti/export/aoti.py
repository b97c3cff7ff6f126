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
from torch._inductor.ir import ReinterpretView
from torch._inductor.virtualized import V
from torch.export import ExportedProgram

from nti.export.decompositions import PACKAGE_RULES
from nti.export.functions import Function
from nti.export.trace import traced

__all__ = ["load_package", "package_program", "write_package"]

OPTIONS = {
    # The weights are loaded once, for all packages.
    "aot_inductor.package_constants_in_so": False,
    # A program that loads it brings libtorch_cpu, and need not have what else PyTorch links.
    "aot_inductor.link_libtorch": False,
    # With as many threads as the caller sets. Else the number at export is compiled in: sums have
    # places for so many threads, and more of them write past the end.
    "cpp.dynamic_threads": True,
}


def package_program(function: Function) -> ExportedProgram:
    """Trace a function to operations of which the compiler makes good loops."""
    return traced(function, rules=PACKAGE_RULES)


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
    """Let oneDNN's products read turned weights as they lie, which oneDNN can.

    A backward pass multiplies by the turned weights. The compiler lays each out anew at every call:
    all of a UNet's in an iteration. It has no setting for that, so its rule is replaced meanwhile,
    for the whole process. Warns where a later PyTorch does not have the rule.
    """
    with contextlib.ExitStack() as replaced:
        for name in ("LinearUnary", "LinearBinary"):
            kind: Any = getattr(mkldnn_ir, name, None)
            if not hasattr(kind, "require_contiguous"):
                warnings.warn(
                    f"export: torch {torch.__version__} has another compiler than this version of"
                    " nti knows, so packages of the iteration may be slow: use torch 2.14",
                    stacklevel=3,
                )
                break
            rule = staticmethod(_unless_a_turned_weight(kind.require_contiguous))
            replaced.enter_context(mock.patch.object(kind, "require_contiguous", rule))
        yield


def _unless_a_turned_weight(contiguous: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the compiler's rule for an operand of a product, but for weights (o, i) as (i, o)."""

    def rule(operand: Any) -> Any:
        is_weight = isinstance(operand, ReinterpretView) and operand.get_name() in V.graph.constants
        return operand if is_weight and operand.get_stride()[0] == 1 else contiguous(operand)

    return rule


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
