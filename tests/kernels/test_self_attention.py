"""Self-attention of rows that use another row's queries and keys."""

import pytest
import torch
from nti.kernels.self_attention import self_attention


def test_a_row_uses_the_queries_and_keys_that_it_is_told() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 3, 2, 20, 16, generator=g, dtype=torch.float64)
    found = self_attention(q, k, v, torch.tensor([0, 2, 2]))
    for row, source in enumerate((0, 2, 2)):
        maps = (q[source] @ k[source].mT / 4).softmax(dim=-1)
        torch.testing.assert_close(found[row], maps @ v[row])


def test_rows_of_another_number_are_refused() -> None:
    q = torch.zeros(2, 1, 4, 16)
    with pytest.raises(ValueError, match=r"rows: got \(1,\), expected \(2,\)"):
        self_attention(q, q, q, torch.tensor([0]))
