"""What the compiler makes of backward passes."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from nti.kernels.backend import has_onednn
from nti.kernels.linear_onednn import product
from torch import Tensor, nn

from nti.export.aoti import load_package, package_program, write_package
from nti.export.functions import Function
from nti.export.trace import traced


class Passes(nn.Module):
    """A layer's forward pass, the backward one of its result, and a sum with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(480, 320), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        back = product(product(x, self.weight), self.weight.t())
        return back, x + product(back, self.weight[:320])


@pytest.mark.skipif(shutil.which("g++") is None, reason="packages need a C++ compiler")
@pytest.mark.skipif(not has_onednn(torch.device("cpu"), torch.float32), reason="needs oneDNN")
def test_turned_weights_are_read_as_they_lie(tmp_path: Path) -> None:
    """Laid out anew at every call, they took a quarter of an iteration at full width."""
    module, x = Passes(), torch.randn(2, 16, 320)
    path = tmp_path / "passes.pt2"
    write_package(torch.export.export(module, (x,)), path)
    with zipfile.ZipFile(path) as archive:
        sources = [name for name in archive.namelist() if name.endswith(".cpp")]
        code = "".join(archive.read(name).decode() for name in sources)
    assert "_linear_pointwise_binary" in code
    assert "cpp_fused" not in code  # products alone, and nothing that copies
    expected = module(x)
    for found, right in zip(
        load_package(path, {"weight": module.weight})(x), expected, strict=True
    ):
        torch.testing.assert_close(found, right)


def test_a_group_norms_gradient_has_a_rule_of_its_own(functions: dict[str, Function]) -> None:
    function = functions["iteration"]
    own, plain = (
        {str(node.target) for node in program.graph.nodes}
        for program in (package_program(function), traced(function))
    )
    assert "aten.native_group_norm_backward.default" in plain - own
