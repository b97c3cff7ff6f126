"""What the compiler makes of products with frozen weights."""

import zipfile
from pathlib import Path

import pytest
import torch
from nti.kernels.backend import has_onednn
from nti.kernels.linear_onednn import product
from torch import Tensor, nn

from nti.export.aoti import load_package, write_package

pytestmark = pytest.mark.skipif(
    not has_onednn(torch.device("cpu"), torch.float32), reason="needs oneDNN"
)


class Passes(nn.Module):
    """A layer's forward pass, and the backward one of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 32), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(product(x, self.weight), self.weight.t())


def test_turned_weights_are_read_as_they_lie(tmp_path: Path) -> None:
    """Laid out anew at every call, they took a third of an iteration at full width."""
    module, x = Passes(), torch.randn(16, 32)
    path = tmp_path / "passes.pt2"
    write_package(torch.export.export(module, (x,)), path)
    with zipfile.ZipFile(path) as archive:
        sources = [name for name in archive.namelist() if name.endswith(".cpp")]
        code = "".join(archive.read(name).decode() for name in sources)
    assert "_linear_pointwise" in code
    assert "transpose_mxn" not in code and "#pragma omp" not in code
    found = load_package(path, {"weight": module.weight})(x)
    torch.testing.assert_close(found, x @ module.weight.t() @ module.weight)
