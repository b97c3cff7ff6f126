"""What an op computes and moves is counted once, and the longer of both times is its own."""

import pytest
import torch
import torch.nn.functional as F

from predict import GPUS, Counted, FusedAttention


def test_a_product_is_counted_with_its_weights() -> None:
    x, weight = (torch.empty(n, 64, dtype=torch.float16, device="meta") for n in (8, 32))
    with Counted() as counted:
        F.linear(x, weight)
    ((name, op),) = counted.ops.items()
    assert (name, op.calls, op.flops) == ("aten::mm", 1, 2 * 8 * 32 * 64)
    assert op.bytes == 2 * (8 * 64 + 32 * 64 + 8 * 32)
    for gpu, seconds in op.seconds.items():  # so few rows wait for their weights
        assert seconds == pytest.approx(op.bytes / (GPUS[gpu].terabytes * 1e12))


def test_a_large_product_takes_its_flops() -> None:
    x = torch.empty(8192, 8192, dtype=torch.float16, device="meta")
    with Counted() as counted:
        x @ x
    assert counted.ops["aten::mm"].seconds["A100"] == pytest.approx(2 * 8192**3 / 312e12)


def test_views_and_empty_memory_take_no_time_and_writing_in_place_does() -> None:
    x = torch.empty(4, 6, device="meta")
    with Counted() as counted:
        torch.empty_like(x).t().reshape(-1)[2:]
        x.add_(1.0)
    assert list(counted.ops) == ["aten::clone", "aten::add_"]  # a transpose is copied row by row
    assert counted.ops["aten::add_"].bytes == 2 * x.nbytes


def test_attention_is_one_op_in_both_passes() -> None:
    q = torch.empty(1, 8, 256, 64, dtype=torch.float16, device="meta", requires_grad=True)
    with FusedAttention(), Counted() as counted:
        F.scaled_dot_product_attention(q, q.detach(), q.detach()).sum().backward()
    name = "aten::_scaled_dot_product_flash_attention"
    forward, backward = counted.ops[name], counted.ops[f"{name}_backward"]
    assert forward.flops == 4 * 8 * 256**2 * 64 < backward.flops
    assert forward.bytes < 5 * q.nbytes  # no map is written
