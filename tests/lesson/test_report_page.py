"""The report of an inversion in a browser: it needs nothing beside it, and its sliders work."""

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

import nti
from nti.report.collect import collect
from nti.report.page import make_report
from seen import Page, changes, drag, keep, pixels

MARKS = "a {{DATA}} </script> {{PROGRAM}} cat"

EDITS = ["a tiger sitting next to a mirror", "a silver cat <b>sitting</b> next to a mirror"]


@pytest.fixture(scope="module")
def plan(model: nti.StableDiffusion, inversion: nti.Inversion) -> nti.EditPlan:
    return nti.EditPlan.create(
        model.tokenizer, inversion.prompt, EDITS, steps=inversion.steps,
        blend=[("cat", "tiger"), None],
    )  # fmt: skip


@pytest.fixture(scope="module")
def html(
    model: nti.StableDiffusion, inversion: nti.Inversion, plan: nti.EditPlan, image: torch.Tensor
) -> str:
    return make_report(model, inversion, plan, photograph=image)


@pytest.fixture
def opened(browser: Page, html: str, tmp_path: Path) -> Page:
    path = tmp_path / "report.html"
    path.write_text(html, "utf-8")
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("#edits:not([hidden])")
    yield page
    assert not complaints
    page.close()


def test_it_holds_what_was_measured(
    model: nti.StableDiffusion, inversion: nti.Inversion, plan: nti.EditPlan, image: torch.Tensor
) -> None:
    found = collect(model, inversion, plan, photograph=image)
    again = nti.reconstruct_latents(model, inversion)[:, 0]
    bound = model.decode_latent(inversion.pivot[-1:])
    error = (bound - image).square().mean() / 4
    assert abs(found.decibels["autoencoder"] + 10 * error.log10()) < 1e-6
    apart = (again - inversion.pivot).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(torch.tensor(found.apart["inversion"]), apart.float())
    assert found.apart["ddim"][0] == 0 and found.apart["ddim"][-1] > apart[-1]
    assert [sum(x is not None for x in row) for row in found.losses] == inversion.iterations
    null = model.encode_text([""])[0]
    moved = (inversion.uncond[-1] - null).norm() / null.norm()
    assert abs(found.moved[-1] - moved) < 1e-5
    first, second = found.edits
    assert first.mapping[2][2] == 1 and first.tokens[2] == "tiger" and sum(first.own) == 0
    assert second.own[2] == 1 and second.masks is None
    edited = nti.edit_latents(model, inversion, plan)
    assert first.masks is not None and edited.masks is not None
    assert torch.equal(first.masks, edited.masks[found.frames, 0].flatten(1))
    maps = found.maps
    assert maps.max() == 255 and maps.shape == (10, 7, found.side[0] * found.side[1])
    average = nti.average_attention(model, inversion)[0].flatten(0, 1)[:, 1:8]
    scaled = maps.float().mean(0).T / maps.float().mean() * average.mean()
    torch.testing.assert_close(scaled, average, atol=0.01 * float(average.max()), rtol=0.02)


def test_nothing_is_beside_it(html: str) -> None:
    assert len(html.encode()) < 5e6
    assert "src=" not in html.split("<script")[0] and "http" not in html.replace(
        "http://www.w3", ""
    )
    assert "<b>sitting" not in html, "a prompt is text"
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    kind, _, packed = data["pictures"]["photograph"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(BytesIO(base64.b64decode(packed))).size == (64, 64)


def test_its_sliders_change_what_is_seen(opened: Page) -> None:
    assert opened.locator("h3", has_text="<b>sitting</b>").count() == 2
    canvas = opened.locator("#maps canvas").nth(1)
    canvas.evaluate("c => c.id = 'looked-at'")
    before = pixels(opened, "looked-at")
    drag(opened, "maps-step", 9)
    changes(opened, "looked-at", before)
    drag(opened, "before-0", 80)
    assert "80%" in opened.locator("img.over").first.evaluate("e => e.style.clipPath")
    assert opened.locator("td.gives").count() > 14
    keep(opened, "report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(opened: Page, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_a_method_without_losses_shows_none(
    browser: Page, model: nti.StableDiffusion, image: torch.Tensor, tmp_path: Path
) -> None:
    made = nti.invert(model, image, MARKS, steps=4, method="ddim")
    path = tmp_path / "report.html"
    path.write_text(make_report(model, made), "utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("#maps canvas")
    assert page.locator("#prompt").inner_text() == MARKS, "marks and tags are text"
    assert not page.locator("#loss-of").is_visible()
    assert not page.locator("#iterations").is_visible()
    assert page.locator("#apart").is_visible() and not page.locator("#edits").is_visible()
    page.close()


def test_the_mask_lies_over_a_wide_picture(
    browser: Page, model: nti.StableDiffusion, tmp_path: Path
) -> None:
    wide = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    made = nti.invert(model, wide, "a cat", steps=4, method="direct")
    plan = nti.EditPlan.create(model.tokenizer, "a cat", "a dog", steps=4, blend=("cat", "dog"))
    path = tmp_path / "report.html"
    path.write_text(make_report(model, made, plan, photograph=wide), "utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("#edits canvas")
    script = "e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }"
    mask = page.locator("#edits canvas").evaluate(script)
    under = page.locator("#edits figure.stack:not(.wide) img").evaluate(script)
    assert mask == pytest.approx(under, abs=1) and under[2] == pytest.approx(2 * under[3], abs=1)
    page.close()


def test_a_long_prompt_ends_where_it_ends(model: nti.StableDiffusion, image: torch.Tensor) -> None:
    words = " ".join(["cat"] * 30)
    made = nti.invert(model, image, words, steps=2, method="ddim")
    plan = nti.EditPlan.create(model.tokenizer, words, f"{words} dog", steps=2)
    found = collect(model, made, plan)
    assert found.cut == 7 and len(found.tokens) == 26
    (edit,) = found.edits
    assert edit.mapping[-1][-1] == 1 and edit.tokens[-1] == "end"


def test_what_cannot_be_shown_is_said(
    model: nti.StableDiffusion, inversion: nti.Inversion, image: torch.Tensor
) -> None:
    alone = nti.invert(model, image, "a cat", steps=2, method="autoencoder")
    with pytest.raises(ValueError, match="report: got an inversion by autoencoder"):
        collect(model, alone)
    with pytest.raises(ValueError, match=r"photograph: got \(1, 3, 32, 64\), expected"):
        collect(model, inversion, photograph=image[:, :, :32])


def test_a_learned_prompt_is_what_moved(model: nti.StableDiffusion, image: torch.Tensor) -> None:
    made = nti.invert(model, image, "a cat", steps=2, inner_steps=1, method="prompt-tuning")
    found = collect(model, made)
    assert found.moved_from == "the prompt" and min(found.moved) > 0
