"""Products by oneDNN, and convolutions as products, against float64."""

import pytest
import torch
import torch.nn.functional as F
from nti.kernels.backend import has_onednn
from nti.kernels.conv2d_onednn import columns, scatter_columns
from nti.kernels.linear import linear
from nti.kernels.linear_onednn import product
from torch import Tensor

from tolerances import assert_close


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded": lambda x: x[:1].expand_as(x),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("turned", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(7, 5, 3), (300, 64, 96), (1, 40, 320)], ids=str)
def test_a_product_in_any_layout(
    layout: str, turned: bool, bias: bool, shape: tuple[int, int, int]
) -> None:
    rows, c_in, c_out = shape
    x = LAYOUTS[layout](normal(rows, 2, c_in))
    weight = normal(c_in, c_out, seed=1).t() if turned else normal(c_out, c_in, seed=1)
    b = normal(c_out, seed=2) if bias else None
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert_close(product(x, weight, b), exact.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    x, weight, bias = normal(6, 4).to(dtype), normal(3, 4).to(dtype), normal(3).to(dtype)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    with pytest.raises(ValueError, match="but oneDNN multiplies float32 on a CPU"):
        linear(x, weight, bias, backend="onednn")


@pytest.mark.skipif(
    not has_onednn(torch.device("cpu"), torch.float32), reason="needs PyTorch with oneDNN"
)
def test_it_is_refused_where_it_is_switched_off() -> None:
    x, weight = normal(6, 4), normal(3, 4)
    assert torch.equal(linear(x, weight, backend="onednn"), F.linear(x, weight))
    with (
        torch.backends.mkldnn.flags(enabled=False),
        pytest.raises(ValueError, match="but oneDNN multiplies"),
    ):
        linear(x, weight, backend="onednn")


CONVOLUTIONS = pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), (1, 1, 0), (3, 1, 0), (3, 2, 0),
     (1, 2, 0), (1, 1, 1), (2, 1, 0), (2, 1, 2), (3, 3, 1), (5, 2, 1)],
)  # fmt: skip


@CONVOLUTIONS
@pytest.mark.parametrize("sides", [(6, 8), (5, 7)], ids=["even", "odd"])
def test_columns_make_a_convolution_a_product(
    kernel: int, stride: int, padding: int, sides: tuple[int, int]
) -> None:
    x = normal(2, *sides, 4, dtype=torch.float64)
    weight = normal(5, kernel, kernel, 4, dtype=torch.float64, seed=1)
    found = columns(x, kernel, stride, padding) @ weight.flatten(1).t()
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), None, stride, padding)
    assert_close(found.permute(0, 3, 1, 2), expected)


@CONVOLUTIONS
@pytest.mark.parametrize("sides", [(6, 8), (5, 7)], ids=["even", "odd"])
def test_scattering_is_the_transpose_of_gathering(
    kernel: int, stride: int, padding: int, sides: tuple[int, int]
) -> None:
    x = normal(2, *sides, 4, dtype=torch.float64)
    gathered = columns(x, kernel, stride, padding)
    y = normal(*gathered.shape, dtype=torch.float64, seed=1)
    back = scatter_columns(y, x.shape, kernel, stride, padding)
    assert back.shape == x.shape
    assert_close((gathered * y).sum(), (x * back).sum())
