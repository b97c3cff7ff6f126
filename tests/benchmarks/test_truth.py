"""How the bench measures: against the true edit, and in passes of the UNet."""

import math

import numpy as np
import pytest
import torch

import nti
from ablations import gaussianity, interval
from measure import Pixels
from nti import StableDiffusion
from passes import counting, gflop_of
from truth import nearness


def pictures() -> tuple[Pixels, Pixels]:
    """A source, and the truth: a square of it changes."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    edited = source.copy()
    edited[20:40, 20:40] = 255 - edited[20:40, 20:40]
    return source, edited


def test_the_true_edit_is_as_near_as_can_be() -> None:
    source, edited = pictures()
    found = nearness(edited, edited, source)
    assert found.psnr_inside == found.psnr_outside == math.inf
    assert found.ssim_inside == pytest.approx(1.0) and found.ssim_outside == pytest.approx(1.0)


def test_no_edit_is_wrong_inside_alone() -> None:
    source, edited = pictures()
    found = nearness(source, edited, source)
    assert found.psnr_outside == math.inf and found.psnr_inside < 10
    assert found.ssim_outside > found.ssim_inside + 0.5


def test_an_error_outside_is_seen_outside_alone() -> None:
    source, edited = pictures()
    damaged = edited.copy()
    damaged[50:, 50:] = 0
    found = nearness(damaged, edited, source)
    assert found.psnr_inside == math.inf and found.psnr_outside < 20


def test_an_edit_of_the_whole_image_has_no_outside() -> None:
    source, _ = pictures()
    assert math.isnan(nearness(source, 255 - source, source).psnr_outside)


def test_an_interval_holds_the_mean_and_leaves_out_what_is_not_finite() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0, math.inf, math.nan])
    assert mean == 2.5 and 1.0 < low < 2.5 < high < 4.0
    assert all(math.isnan(x) for x in interval([math.nan]))


def test_passes_are_counted_for_each_image(model: StableDiffusion) -> None:
    counted, count = counting(model)
    made = nti.generate(counted, "a cat", steps=3)
    assert (count.forward, count.backward) == (6, 0)
    nti.edit(counted, made, ["a dog", "two cats"])
    assert count.forward > 6 + 3 * 4  # two edits, and the source's row at some steps
    forward, backward = gflop_of(model)
    assert 0 < forward < 1 and 0.5 < backward / forward < 1.5


def test_a_normal_latent_is_told_from_others() -> None:
    normal = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = normal.cumsum(dim=-1) / 4
    for latent, alike in ((normal, True), (smooth, False)):
        found = {name: values for name, _, values in gaussianity(latent)}
        expected = {"squared norm / d": 1.0, "kurtosis": 3.0, "autocorrelation": 0.0}
        for name, value in expected.items():
            near = all(abs(v - value) < 0.2 for v in found[name])
            assert near or not alike, name
        assert alike == (max(found["autocorrelation"]) < 0.2)
    per_value = np.mean(found["log-density"]) / smooth[0].numel()
    assert per_value < -(1 + math.log(2 * math.pi)) / 2
