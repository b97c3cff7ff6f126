"""The reference of the fold, against maps that are written out row by row."""

import pytest
import torch
from nti.kernels.cfg_attention import Fold, cfg_attention, materialised

from tolerances import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Fold]


def inputs(dtype: torch.dtype, edits: int = 2) -> Inputs:
    """A published batch of 2E + 2 rows with an arbitrary fold."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    rows = 2 * edits + 2
    q, k, v = normal(rows, 2, 20, 8), normal(rows, 2, 77, 8), normal(rows, 2, 77, 8)
    sources = torch.full((edits,), edits + 1)
    return q, k, v, Fold(sources, normal(edits, 77, 77), normal(edits, 77))


def written_out(q: torch.Tensor, k: torch.Tensor, values: torch.Tensor, fold: Fold) -> torch.Tensor:
    """P_e' = P_s A + P_e diag(b), row by row in float64."""
    q, k, v = (t.double() for t in (q, k, values))
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    first = len(q) - len(fold.source_rows)
    edited = [
        p[source] @ a.double() + p[first + i] * b.double()
        for i, (source, a, b) in enumerate(zip(*fold, strict=True))
    ]
    return torch.cat([p[:first], torch.stack(edited)]) @ v


@DTYPES
@pytest.mark.parametrize("edits", [1, 3], ids=["E1", "E3"])
def test_the_fold_equals_materialised_maps(dtype: torch.dtype, edits: int) -> None:
    x = inputs(dtype, edits)
    out, maps = cfg_attention(*x)
    assert maps is None
    assert_close(out, written_out(*x).to(dtype))


@DTYPES
@pytest.mark.parametrize("width", [1, 8, 77], ids=["W1", "W8", "W77"])
def test_word_maps_equal_materialised_maps(dtype: torch.dtype, width: int) -> None:
    q, k, v, fold = inputs(dtype)
    g = torch.Generator().manual_seed(1)
    words = torch.randint(0, 2, (3, 77, width), generator=g).to(dtype)
    columns = torch.zeros(len(v), 1, 77, width, dtype=torch.float64)
    columns[-3:, 0] = words
    expected = written_out(q, k, columns.expand(-1, 2, -1, -1), fold)[-3:].mean(dim=1)
    out, maps = cfg_attention(q, k, v, fold, words)
    assert maps is not None
    assert_close(maps, expected.to(dtype))
    assert torch.equal(out, cfg_attention(q, k, v, fold)[0])


def test_materialised_is_the_map_that_the_fold_applies() -> None:
    q, k, v, fold = inputs(torch.float64)
    assert_close(materialised(q, k, fold) @ v, written_out(q, k, v, fold))


def test_rows_without_control_are_plain_attention() -> None:
    q, k, v, fold = inputs(torch.float64)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close(cfg_attention(q, k, v, fold)[0][:-2], plain[:-2])
    assert_close(cfg_attention(q, k, v)[0], plain)
    assert_close(materialised(q, k) @ v, plain)
