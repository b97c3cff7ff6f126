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
    assert first.masks == edited.masks[found.frames, 0].int().flatten(1).tolist()
    maps = torch.tensor(found.maps)
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
