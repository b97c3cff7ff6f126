"""What is read off the lesson's page."""

import os
from typing import Any

__all__ = ["Page", "changes", "drag", "keep", "pixels", "text_of"]

Page = Any


def keep(page: Page, name: str) -> None:
    """Keep a screenshot, in the folder that `NTI_SCREENSHOTS` names."""
    if folder := os.environ.get("NTI_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def pixels(page: Page, canvas: str) -> list[int]:
    """A canvas's pixels, four numbers each."""
    script = (
        "id => { const c = document.getElementById(id);"
        " return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data) }"
    )
    found: list[int] = page.evaluate(script, canvas)
    return found


def changes(page: Page, canvas: str, before: list[int]) -> None:
    """Wait until a canvas shows something else."""
    page.wait_for_function(
        "([id, old]) => { const c = document.getElementById(id);"
        " const now = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " return now.length !== old.length || now.some((x, k) => x !== old[k]) }",
        arg=[canvas, before],
        timeout=60_000,
    )


def drag(page: Page, slider: str, value: float) -> None:
    """Set a slider, as dragging it does."""
    page.locator(f"#{slider}").fill(str(value))


def text_of(page: Page, output: str) -> str:
    """What an output shows."""
    found: str = page.evaluate("id => document.getElementById(id).value", output)
    return found
