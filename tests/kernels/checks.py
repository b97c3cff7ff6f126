"""What the checks of all kernels share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from nti.kernels.backend import has_onednn
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tolerances import assert_close

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

Op = Callable[..., Tensor]

BY_BACKEND = pytest.mark.parametrize(
    "backend",
    [
        "reference",
        pytest.param(
            "onednn",
            marks=pytest.mark.skipif(
                not has_onednn(torch.device("cpu"), torch.float32), reason="needs oneDNN"
            ),
        ),
    ],
)
"""The backends of a CPU."""


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what is allocated with NaN, so that an element never written shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def normal(name: str, dtype: torch.dtype, device: str) -> Callable[..., Tensor]:
    """Random tensors, other ones for every check and the same in every run."""
    g = torch.Generator().manual_seed(sum(i * ord(c) for i, c in enumerate(name, 1)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    return draw


class Watch(TorchDispatchMode):
    """Keep the ops that are dispatched, and the tensors that they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[OpOverload, list[Tensor]]] = []

    @property
    def ops(self) -> list[str]:
        """The names of the ops."""
        return [op.name() for op, _ in self.given]

    def __torch_dispatch__(
        self, op: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.given.append((op, [x for x in args if isinstance(x, Tensor)]))
        return op(*args, **(kwargs or {}))


def with_gradients(op: Op, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = op(*inputs)
    gradients = torch.autograd.grad(out, inputs, cotangent.to(out.dtype))
    return [out.detach(), *gradients]


def check_one_graph(op: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> None:
    """torch.func.vjp through an op, eager and captured without a break, is autograd's gradient."""

    def pulled(x: Tensor) -> tuple[Tensor, Tensor]:
        out, pull = torch.func.vjp(op, x)
        return out, pull(cotangent)[0]

    out, gradient = with_gradients(op, [x], cotangent)
    compiled = torch.compile(pulled, fullgraph=True, backend="aot_eager")
    for a, b in (pulled(x), compiled(x)):
        assert_close(a.detach(), out)
        assert_close(b.detach(), gradient)


def refusal(run: Callable[[], object]) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing was refused"
