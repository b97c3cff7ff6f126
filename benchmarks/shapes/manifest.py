"""Write held-out scenes as a manifest for `nti run`: pictures, captions, an edit and its mask.

    python benchmarks/shapes/manifest.py 200 -o train/world

The kinds of edits take turns. Their windows are those that `edits.py` has.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from edits import KINDS, cases, true_mask
from evaluate import TEST, held_out
from scene import render

NAME = "manifest.jsonl"


def write_manifest(folder: Path, count: int, first: int = TEST) -> Path:
    """Write so many scenes of the held-out ones, from one on, and return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(held_out(first, count)):
        name = f"scene-{scene.seed}"
        case = list(cases(scene))[number % len(KINDS)]
        Image.fromarray(render(scene)).save(folder / f"{name}.png")
        true_mask(case, scene).save(folder / f"{name}-mask.png")
        line = {
            "id": name, "image": f"{name}.png", "prompt": scene.caption(), "type": case.kind,
            "mask": f"{name}-mask.png", "edits": [{"prompt": case.prompt, **case.settings}],
        }  # fmt: skip
        lines.append(json.dumps(line))
    (folder / NAME).write_text("\n".join(lines) + "\n", "utf-8")
    return folder / NAME


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    print(f"wrote {write_manifest(options.output, options.count)}")
