import pytest
import torch
from nti.kernels.cfg_attention import cfg_attention, materialised, word_maps

from tolerances import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def inputs(dtype: torch.dtype, edits: int = 2) -> dict[str, torch.Tensor]:
    """A published batch of 2E + 2 rows with an arbitrary fold."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    rows = 2 * edits + 2
    return {
        "q": normal(rows, 2, 20, 8),
        "k": normal(rows, 2, 77, 8),
        "v": normal(rows, 2, 77, 8),
        "source_rows": torch.full((edits,), edits + 1),
        "source_mix": normal(edits, 77, 77),
        "own_mix": normal(edits, 77),
    }


def reference(x: dict[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """P_e' = P_s A + P_e diag(b), written out row by row in float64."""
    q, k, v = (t.double() for t in (x["q"], x["k"], values))
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    first = len(q) - len(x["source_rows"])
    edited = [
        p[source] @ a.double() + p[first + i] * b.double()
        for i, (source, a, b) in enumerate(
            zip(x["source_rows"], x["source_mix"], x["own_mix"], strict=True)
        )
    ]
    return torch.cat([p[:first], torch.stack(edited)]) @ v


@DTYPES
@pytest.mark.parametrize("edits", [1, 3], ids=["E1", "E3"])
def test_the_fold_equals_materialised_maps(dtype: torch.dtype, edits: int) -> None:
    x = inputs(dtype, edits)
    assert_close(cfg_attention(**x), reference(x, x["v"]).to(dtype))


@DTYPES
@pytest.mark.parametrize("width", [1, 8, 77], ids=["W1", "W8", "W77"])
def test_word_maps_equal_materialised_maps(dtype: torch.dtype, width: int) -> None:
    x = inputs(dtype)
    g = torch.Generator().manual_seed(1)
    words = torch.randint(0, 2, (3, 77, width), generator=g).to(dtype)
    v = x.pop("v")
    columns = torch.zeros(len(v), 1, 77, width, dtype=torch.float64)
    columns[-3:, 0] = words
    expected = reference(x, columns.expand(-1, 2, -1, -1))[-3:].mean(dim=1)
    assert_close(word_maps(x["q"], x["k"], words, *list(x.values())[2:]), expected.to(dtype))


def test_materialised_is_the_map_that_the_fold_applies() -> None:
    x = inputs(torch.float64)
    v = x.pop("v")
    assert_close(materialised(**x) @ v, reference(x, v))


def test_rows_without_control_are_plain_attention() -> None:
    x = inputs(torch.float64)
    plain = torch.nn.functional.scaled_dot_product_attention(x["q"], x["k"], x["v"])
    assert_close(cfg_attention(**x)[:-2], plain[:-2])
