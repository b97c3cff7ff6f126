"""What an op computes and moves is counted once, and the longer of both times is its own."""

import csv
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

aten = torch.ops.aten


@pytest.fixture(scope="module")
def predict() -> Iterator[ModuleType]:
    """The program, whose folder has modules of names that others have, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("predict")


def half(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


def test_a_product_is_counted_with_its_weights(predict: ModuleType) -> None:
    x, weight = half(8, 64), half(32, 64)
    with predict.Counted() as counted:
        F.linear(x, weight)
    ((name, op),) = counted.ops.items()
    assert (name, op.calls, op.flops) == ("aten::mm", 1, 2 * 8 * 32 * 64)
    assert op.bytes == 2 * (8 * 64 + 32 * 64 + 8 * 32)
    for gpu, seconds in op.seconds.items():  # so few rows wait for their weights
        assert seconds == pytest.approx(op.bytes / (predict.GPUS[gpu].terabytes * 1e12))


def test_a_large_product_takes_its_flops(predict: ModuleType) -> None:
    x = half(8192, 8192)
    with predict.Counted() as counted:
        x @ x
    assert counted.ops["aten::mm"].seconds["A100"] == pytest.approx(2 * 8192**3 / 312e12)
    assert counted.ops["aten::mm"].bytes == 2 * x.nbytes  # read once, written once


def test_views_and_empty_memory_take_no_time_and_writing_in_place_does(predict: ModuleType) -> None:
    x = half(4, 6)
    with predict.Counted() as counted:
        torch.empty_like(x).t().reshape(-1)[2:]
        x.add_(1.0)
        x.copy_(half(1, 6).expand(4, 6))
        torch.zeros_like(x)
    moved = {name: op.bytes for name, op in counted.ops.items()}
    assert moved == {
        "aten::clone": 2 * x.nbytes,  # a transpose is copied row by row
        "aten::add_": 2 * x.nbytes,
        "aten::copy_": x.nbytes + x.nbytes / 4,
        "aten::zeros_like": x.nbytes,
    }


@pytest.mark.parametrize("to_weight", [False, True])
def test_a_convolution_reads_its_input_again_for_its_weights_alone(
    predict: ModuleType, to_weight: bool
) -> None:
    x, weight, bias, grad = half(1, 4, 8, 8), half(6, 4, 3, 3), half(6), half(1, 6, 8, 8)
    sides, mask = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1), [True, to_weight, False]
    with predict.Counted() as counted:
        F.conv2d(x, weight, bias, padding=1)
        aten.convolution_backward(grad, x, weight, None, *sides, mask)
    expected = grad.nbytes + weight.nbytes + x.nbytes
    expected += x.nbytes + weight.nbytes if to_weight else 0
    assert counted.ops["aten::convolution_backward"].bytes == expected
    assert counted.ops["aten::add"].bytes == 2 * grad.nbytes  # of the bias


def test_attention_is_one_op_in_both_passes(predict: ModuleType) -> None:
    q = half(1, 8, 256, 64).requires_grad_()
    with predict.FusedAttention(), predict.Counted() as counted:
        F.scaled_dot_product_attention(q, q.detach(), q.detach()).sum().backward()
    name = "aten::_scaled_dot_product_flash_attention"
    forward, backward = counted.ops[name], counted.ops[f"{name}_backward"]
    assert forward.flops == 4 * 8 * 256**2 * 64 < backward.flops
    assert forward.bytes < 5 * q.nbytes  # no map is written


def test_attention_under_a_mask_stays_as_it_is(predict: ModuleType) -> None:
    q, mask = half(1, 1, 16, 64), half(16, 16)
    with predict.FusedAttention(), predict.Counted() as counted:
        F.scaled_dot_product_attention(q, q, q, mask)
        F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert "aten::_scaled_dot_product_flash_attention" not in counted.ops


def test_the_committed_counts_add_up_to_the_work_of_an_iteration(predict: ModuleType) -> None:
    """The bench credits that work to all, counted on the peer's UNet."""
    with (predict.RESULTS / "predicted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    flops = [float(row["gflop"]) for row in rows if row["case"] == "iteration"]
    roofline = importlib.import_module("roofline")
    needed = 1e3 * roofline.iteration_tflop(predict.SD_V1, predict.SIDE)
    assert sum(flops) == pytest.approx(needed, rel=0.05)
