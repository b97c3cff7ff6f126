"""What the work of null-text inversion buys: reconstruction and edits over the UNet's GFLOP.

    python benchmarks/shapes/tradeoff.py

`null-text` with N iterations a timestep, `null-text-fast` from several places between psi(P) and
psi(""), and `negative-prompt`, which stays at psi(P), at the model's own guidance and the paper's.
Settings are chosen by this, so the scenes are not those that figures are scored on. The same
command again makes the arms that a file lacks.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import nti
from ablations import PUBLISHED_GUIDANCE, Bench, Figure, scored, write
from edits import cases
from evaluate import CHOICE, held_out
from nti import InversionSettings
from pairs import prompt_to_prompt
from passes import gflop_of

ITERATIONS = (1, 2, 5, 10)
STARTS = (0.2, 0.25, 0.5, 0.75, 1.0)
"""How far from psi(P) towards psi("")."""


def arms(steps: int, w: float) -> Iterator[tuple[str, float, InversionSettings]]:
    """Yield each method with each of its settings."""
    for count in ITERATIONS:
        yield "null-text", count, InversionSettings(steps, w, count)
    for start in STARTS:
        settings = InversionSettings(steps, w, method="null-text-fast", towards_null=start)
        yield "null-text-fast", start, settings
    yield "negative-prompt", 0, InversionSettings(steps, w, method="negative-prompt")


def rows(bench: Bench, w: float, known: set[tuple[str, float]]) -> Iterator[Figure]:
    """Yield three figures for each arm that is not known."""
    for case, x, settings in arms(bench.steps, w):
        if (case, x) in known:
            continue
        made, gflop, seconds = bench.inverted(bench.captions, settings)
        found = []
        for scene, inversion in zip(bench.scenes, made, strict=True):
            edits = list(cases(scene))
            images = prompt_to_prompt(bench.model, inversion, edits, scene)
            found.append(scored(scene, edits, images))
        kept, right = zip(*found, strict=True)
        for name, values, unit in (
            ("reconstruction", bench.sampled_again(made), "dB"),
            ("kept", kept, "dB"),
            ("edited", right, "%"),
        ):
            yield bench.figure(
                f"fast-w{w:g}", name, case, x, values, unit, gflop=gflop, seconds=seconds
            )


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    model = nti.load_model()
    bench = Bench(model, held_out(CHOICE, options.scenes), options.steps, gflop_of(model))
    for w in (model.config.guidance_scale, PUBLISHED_GUIDANCE):
        path = options.out / f"ablation-fast-w{w:g}.csv"
        write(path, rows(bench, w, _known(path)), "a")


def _known(path: Path) -> set[tuple[str, float]]:
    """Return the arms that a file has whole."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(r["case"], float(r["x"])) for r in csv.DictReader(file) if r["name"] == "edited"}


if __name__ == "__main__":
    main()
