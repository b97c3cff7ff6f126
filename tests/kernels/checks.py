"""What the checks of all kernels share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

Op = Callable[..., Tensor]


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
    """Keep the names of the ops that are dispatched, and the tensors that they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []
        self.given: list[tuple[str, list[Tensor]]] = []

    def __torch_dispatch__(
        self, op: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.ops.append(op.name())
        self.given.append((op.name(), [x for x in args if isinstance(x, Tensor)]))
        return op(*args, **(kwargs or {}))


def with_gradients(op: Op, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = op(*inputs)
    gradients = torch.autograd.grad(out, inputs, cotangent.to(out.dtype))
    return [out.detach(), *gradients]


def refusal(run: Callable[[], object]) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing was refused"
