"""The lesson in a browser: what it computes is what Python computes, and people can use it."""

import gzip
from pathlib import Path

import pytest
import torch

import nti
from nti.demo import sample_captions
from seen import Page, changes, drag, keep, pixels, text_of

EDITS = {
    "replace": {"text": "a green heart on snow", "cross": 0.4, "self": 0.3},
    "refine": {"text": "a striped purple circle on snow", "reweight": {"striped": 2.0}},
    "two tokens": {"text": "a checkered purple circle in the sky"},
    "blend": {"text": "a green circle on snow", "blend": ["circle", "circle"]},
}


@pytest.fixture(scope="module")
def inversion(site: Path, tmp_path_factory: pytest.TempPathFactory) -> nti.Inversion:
    path = tmp_path_factory.mktemp("inversion") / "x.nti.safetensors"
    packed = site / "model/inversion.nti.safetensors.gz"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return nti.Inversion.load(path)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_same_as_in_python(
    page: Page, embedded: nti.StableDiffusion, inversion: nti.Inversion, name: str
) -> None:
    given = {"cross": 0.8, "self": 0.5, "w": inversion.guidance_scale, "blend": None} | EDITS[name]
    found = page.evaluate("given => window.lesson.compute('edit', given)", given)
    blend = given["blend"]
    plan = nti.EditPlan.create(
        embedded.tokenizer, inversion.prompt, given["text"], steps=inversion.steps,
        cross_replace=given["cross"], self_replace=given["self"],
        reweight=given.get("reweight"), blend=blend and tuple(blend),
    )  # fmt: skip
    expected = nti.edit_latents(embedded, inversion, plan).latents[-1]
    latent = torch.tensor(found["latent"]).view_as(expected)
    assert (latent - expected).abs().max() < 2e-3 * expected.abs().max()
    assert (latent - inversion.latents[-1]).abs().max() > 0.1, "the edit changes something"
    picture = torch.tensor(found["picture"])
    decoded = embedded.decode_latent(expected).flatten()
    assert ((picture - decoded).abs() * 127.5).max() < 2


def test_sliders_change_what_is_seen(page: Page) -> None:
    before = pixels(page, "noise-picture")
    drag(page, "noise-step", 3)
    changes(page, "noise-picture", before)
    assert text_of(page, "noise-t") == "801"
    before = pixels(page, "noise-picture")
    page.click("#noise-steps")
    changes(page, "noise-picture", before)
    before = pixels(page, "attention-map")
    drag(page, "attention-step", 15)
    changes(page, "attention-map", before)
    keep(page, "sliders")


def test_sampling_leaves_the_pivot_with_guidance(page: Page) -> None:
    apart = []
    for w in (1, 7.5):
        drag(page, "inversion-w", w)
        page.click("#inversion-go")
        page.wait_for_function(
            "w => document.querySelectorAll('#inversion-curve polyline').length"
            " && document.getElementById('inversion-progress').value"
            " === document.getElementById('inversion-progress').max"
            " && document.getElementById('inversion-psnr').value",
            arg=w, timeout=90_000,
        )  # fmt: skip
        page.wait_for_timeout(200)
        apart.append(float(text_of(page, "inversion-psnr").split()[0]))
        page.evaluate("document.getElementById('inversion-psnr').value = ''")
        page.evaluate("document.getElementById('inversion-progress').value = 0")
    assert apart[0] > apart[1] + 2
    assert page.locator("#inversion-curve polyline").count() == 2


def test_a_timestep_is_optimized(page: Page) -> None:
    drag(page, "null-step", 6)
    page.click("#null-go")
    page.wait_for_selector("#algorithm .runs", timeout=60_000)
    page.wait_for_function(
        "document.getElementById('null-psnr').value !== ''"
        " && !document.querySelector('#algorithm .runs')",
        timeout=90_000,
    )
    curve = page.locator("#null-curve polyline").first.get_attribute("points").split()
    heights = [float(point.split(",")[1]) for point in curve]
    assert len(heights) > 2 and heights[-1] > heights[0], "down is more: the loss falls"


def test_the_fold_can_be_changed_by_hand(page: Page) -> None:
    page.click("[data-edit*=green]")
    page.wait_for_function("document.getElementById('edit-text').value.includes(' s')")
    cell = page.locator('[data-place="2,2"]')
    assert cell.get_attribute("data-value") == "1"
    cell.focus()
    page.keyboard.press("Enter")
    assert page.locator('[data-place="2,2"]').get_attribute("data-value") == "0"
    assert page.evaluate("document.activeElement.dataset.place") == "2,2"
    before = pixels(page, "fold-picture")
    page.click("#fold-go")
    changes(page, "fold-picture", before)
    page.click("#fold-reset")
    assert page.locator('[data-place="2,2"]').get_attribute("data-value") == "1"


def test_the_keyboard_reaches_everything(page: Page) -> None:
    controls = page.locator("a[href], button, input, select")
    controls.evaluate_all("all => all.forEach((each, i) => (each.dataset.number = i))")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = set()
    for _ in range(controls.count() + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.number"))
    assert {str(i) for i in range(controls.count())} <= reached
    page.focus("#attention-words button:nth-child(3)")
    page.keyboard.press("Shift+Tab")
    assert text_of(page, "attention-label") == "“purple”"
    page.focus("#noise-step")
    before = text_of(page, "noise-t")
    page.keyboard.press("ArrowRight")
    assert text_of(page, "noise-t") != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(22, 25, 31)") == (scheme == "dark")
    keep(page, f"phone-{scheme}")
    page.set_viewport_size({"width": 1100, "height": 900})


def test_it_is_small_and_names_nothing_elsewhere(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 40e6
    for path in (*site.glob("*.js"), *site.glob("*.html"), *site.glob("*.css")):
        assert "http" not in path.read_text("utf-8"), "a page needs no network"
    assert sample_captions()["purple-circle"] == "a purple circle on snow"
