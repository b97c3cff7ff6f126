"""Time this tree beside another commit: an inner iteration and an edit, in turns, on one machine.

    python benchmarks/compare.py COMMIT --side 256 --repeats 5

A process each keeps its model, and the parent lets one of them work at a time. Both have the same
random weights and the same inputs. An edit is one of ten steps, without decoding.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
WORK = ("step", "edit")
EDIT_STEPS = 10


def main() -> None:
    """Compare, print and write the rows; or work for a parent that says what to do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("work", nargs="*", choices=[*WORK, []], help="default: both")
    parser.add_argument("--side", type=int, action="append", help="pixels (default: 256 and 512)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a narrow model")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _serve(options.side[0], options.quick)
        return
    with TemporaryDirectory() as folder:
        trees = {"before": _checked_out(options.commit, Path(folder)), "after": ROOT}
        sites = {name: _installed(tree, Path(folder) / name) for name, tree in trees.items()}
        for side in options.side or [256, 512]:
            _compare(options, side, trees, sites)


def _checked_out(commit: str, folder: Path) -> Path:
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "x", "-C", str(tree)], input=archive.stdout, check=True)
    return tree


def _installed(tree: Path, site: Path) -> Path:
    """Install a tree's package alone into a folder of its own."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*command, str(tree)], check=True, cwd=site.parent)
    return site


def _compare(
    options: argparse.Namespace, side: int, trees: dict[str, Path], sites: dict[str, Path]
) -> None:
    from rows import make_row, write_rows

    children = {}
    for name, site in sites.items():
        command = [sys.executable, "-P", __file__, options.commit, "--child", "--side", str(side)]
        command += ["--quick"] if options.quick else []
        paths = os.pathsep.join([str(site), str(trees[name] / "benchmarks")])
        children[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    rows = []
    for work in options.work or WORK:
        times: dict[str, list[float]] = {name: [] for name in children}
        names = list(children)
        for turn in range(-1, options.repeats):
            for name in names if turn % 2 else reversed(names):
                milliseconds = _ask(children[name], work)
                if turn >= 0:
                    times[name].append(milliseconds)
        case = f"{work}, {'narrow, ' if options.quick else ''}{side} px"
        case += f", {EDIT_STEPS} steps" if work == "edit" else ""
        labels = {"before": f"before, {options.commit}", "after": "after"}
        made = [make_row("compare", labels[n], case, milliseconds=t) for n, t in times.items()]
        for row in made:
            print(f"{row.case:<24} {row.provider:<16} {row.p50_ms:>10.1f} ms", flush=True)
        print(f"{case}: after / before {made[1].p50_ms / made[0].p50_ms:.3f}", flush=True)
        rows += made
    for child in children.values():
        child.communicate()
    write_rows(rows, options.out / ("quick-compare.csv" if options.quick else "compare.csv"))


def _ask(child: "subprocess.Popen[str]", work: str) -> float:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(f"{work}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def _serve(side: int, quick: bool) -> None:
    """Do what each line of standard input names, and print the milliseconds that it took."""
    import torch

    from cases import QUICK, random_model  # this commit's or the other's
    from nti.config import SD_V1

    config = QUICK if quick else SD_V1
    model = random_model(config, torch.float32, torch.device("cpu"), whole=True)
    model.decode_latent = lambda latent: latent.new_full((len(latent), 3, 8, 8), -1.0)
    work = {"step": _iteration(model, config, side), "edit": _edit(model, config, side)}
    for line in sys.stdin:
        started = time.perf_counter()
        work[line.strip()]()
        print(1e3 * (time.perf_counter() - started), flush=True)


def _iteration(model: object, config: object, side: int) -> Callable[[], object]:
    import torch

    import cases

    device = torch.device("cpu")
    if not hasattr(cases, "shipped_iteration"):
        x = cases.step_inputs(config, side, device, model.steps.noise)
        return partial(cases.moment_after, model.steps, x)
    # Up to 0.1.0 the model itself had the steps, and each timestep was begun apart.
    x = cases.step_inputs(config, side, device, model.predict_noise)
    return partial(cases.shipped_iteration, model, model.begin(x.latent, x.timestep), x)


def _edit(model: object, config: object, side: int) -> Callable[[], object]:
    import nti
    import p2p

    inversion = p2p._random_inversion(model, side, EDIT_STEPS)
    return lambda: nti.edit(model, inversion, p2p.EDITED, mode="replace")


if __name__ == "__main__":
    main()
