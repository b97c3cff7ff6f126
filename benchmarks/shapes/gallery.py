"""Draw what methods and editors make of one scene, beside its true edits.

    python benchmarks/shapes/gallery.py

Writes docs/methods-gallery.png, with the bench's 20 timesteps and the model's own guidance.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

import nti
from edits import cases
from evaluate import TEST, held_out
from nti import InversionSettings, StableDiffusion
from nti.contact_sheet import contact_sheet
from nti.files import write_picture
from pairs import EDITORS
from scene import Scene, render

ROWS = {
    "null-text": ("p2p", "masactrl", "diffedit", "sdedit", "masked"),
    "edit-friendly": ("p2p",),
    "prompt-tuning": ("p2p",),
    "null-text-random-pivot": ("p2p",),
    "autoencoder": ("imagic", "unitune"),
}
STEPS = 20

Row = list[tuple[Image.Image, str]]


def rows(model: StableDiffusion, scene: Scene) -> Iterator[Row]:
    """Yield the truth, then a row for each method and editor: what comes back, and the edits."""
    source, edits = Image.fromarray(render(scene)), list(cases(scene))
    truth = [Image.fromarray(render(case.edited)) for case in edits]
    yield [(source, scene.caption()), *zip(truth, (case.prompt for case in edits), strict=True)]
    for method, editors in ROWS.items():
        settings = InversionSettings(steps=STEPS, method=method)
        (inversion,) = nti.invert_batch(model, [source], [scene.caption()], settings)
        again = nti.reconstruct(model, inversion)
        for editor in editors:
            images = EDITORS[editor](model, inversion, edits, scene)
            yield [
                (again, f"{method}, {editor}"),
                *((image, case.kind) for image, case in zip(images, edits, strict=True)),
            ]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scene", type=int, default=TEST + 42, help="which of the held-out ones")
    parser.add_argument("--out", type=Path, default=Path("docs/methods-gallery.png"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*was never trained on 'beikkpic'")  # as UniTune has
    (scene,) = held_out(options.scene, 1)
    write_picture(contact_sheet(list(rows(nti.load_model(), scene)), cell=128), options.out)


if __name__ == "__main__":
    main()
