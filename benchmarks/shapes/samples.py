"""Write the sample images that come with the package: held-out scenes, and their captions.

python benchmarks/shapes/samples.py weights_loader/samples
"""

import json
import sys
from pathlib import Path

from PIL import Image

from scene import random_scene, render

SAMPLES = {
    "purple-circle": 1_000_109,
    "circle-and-star": 1_000_140,
    "red-cross": 1_000_080,
    "green-star": 1_000_071,
    "heart-and-cross": 1_000_208,
    "star-and-square": 1_000_213,
}
"""Seeds beyond those of training."""


def main(directory: Path) -> None:
    """Render every sample to `directory`, with `captions.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    captions = {}
    for name, seed in SAMPLES.items():
        scene = random_scene(seed)
        captions[name] = scene.caption()
        Image.fromarray(render(scene)).save(directory / f"{name}.png", optimize=True)
    (directory / "captions.json").write_text(json.dumps(captions, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
