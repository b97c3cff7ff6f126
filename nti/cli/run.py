"""`nti run`: invert and edit every image of a manifest, here or on a cluster."""

import argparse
import logging
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from nti.cli.caption_options import (
    add_caption_options,
    candidates_of,
    chosen_captioner,
    is_captioned,
)
from nti.cli.options import Commands, add_model_options, load_model, parse_dtype
from nti.cli.progress import progress

if TYPE_CHECKING:
    from nti.cli.progress import Progress as Shown
    from nti.datasets.run import Executor, Progress

__all__ = ["SOME_FAILED", "add"]

SOME_FAILED = 3
"""The exit code of a run some of whose items could not be made."""


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("run", help="invert and edit every image of a manifest")
    add_model_options(command)
    command.add_argument(
        "manifest", metavar="MANIFEST",
        help=".csv or .jsonl; a folder of pictures with .txt captions; PIE-Bench's folder",
    )  # fmt: skip
    command.add_argument("--method", metavar="NAME", help="of the inversions (null-text)")
    command.add_argument("--editor", metavar="NAME", help="of the edits (p2p)")
    command.add_argument("--size", metavar="N|WxH|native", help="as of `nti invert`")
    command.add_argument("--fit", metavar="HOW", help="as of `nti invert`")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="any other setting by its column's name, e.g. cross_replace=0.4; may be given again",
    )  # fmt: skip
    command.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="images inverted at once (default: what fits, measured)",
    )
    command.add_argument(
        "--keep-inversions", action="store_true", help="keep them beside the pictures"
    )
    command.add_argument("--store", metavar="DTYPE", help="keep them in float16 or bfloat16")
    command.add_argument(
        "--strict", action="store_true", help="make nothing where anything of the manifest is wrong"
    )
    command.add_argument(
        "--ray",
        metavar="local|auto|ADDRESS",
        help="make the items on a Ray cluster: local, one that ends with this command; auto, one"
        " that runs here already, else local; or HOST:PORT",
    )
    command.add_argument(
        "--cpus-per-worker", type=int, metavar="N", help="threads of a worker of the cluster (1)"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="how many (default: all that fit)"
    )
    add_caption_options(command)
    command.add_argument("-o", "--output", required=True, metavar="DIR")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the items, and say how many could not be."""
    from nti.arguments import a_whole_number
    from nti.datasets.manifest import read_manifest
    from nti.datasets.run import run_manifest
    from nti.datasets.work import Keep

    manifest = read_manifest(options.manifest)
    given = _given(options)
    parse_dtype(options.store, "--store", ("float16", "bfloat16"))
    for name, value in (
        ("--cpus-per-worker", options.cpus_per_worker),
        ("--workers", options.workers),
        ("--batch", options.batch),
    ):
        if value is not None:
            a_whole_number(name, value, 1)
            if options.ray is None and name != "--batch":
                raise ValueError(f"{name}: got no --ray, expected one: give auto")
    executor = _executor(options, captioned=any(item.prompt is None for item in manifest.items))
    logging.getLogger("nti").setLevel(logging.WARNING)  # how words are aligned, of every edit
    try:
        # What Ray tells of dead workers goes where it does not mix with events.
        with redirect_stdout(sys.stderr), progress(options.terminal, "running") as shown:
            summary = run_manifest(
                manifest, options.output, executor, settings=given,
                keep=Keep(options.keep_inversions, options.store), batch=options.batch,
                strict=options.strict, progress=lambda state: _show(shown, state),
                say=options.terminal.say, warn=options.terminal.warn,
            )  # fmt: skip
    except (KeyboardInterrupt, OSError) as error:
        error.add_note("what was made is kept, and the same command goes on")
        raise
    finally:
        close = getattr(executor, "close", None)
        if close is not None:
            close()
    told = f"{summary.done} done, {summary.failed} failed; {summary.made} made now"
    options.terminal.wrote(f"{options.output.rstrip('/')}/summary.csv", told)
    return SOME_FAILED if summary.failed else 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of all items by their names."""
    from nti.datasets.fields import EDIT, INVERSION, canonical

    named = {
        "method": options.method, "editor": options.editor, "steps": options.steps,
        "guidance_scale": options.guidance, "size": options.size, "fit": options.fit,
    }  # fmt: skip
    given = {name: value for name, value in named.items() if value is not None}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals or name not in (*INVERSION, *EDIT):
            raise ValueError(
                f"--set: got {text!r}, expected NAME=VALUE with one of"
                f" {', '.join((*INVERSION, *EDIT))}"
            )
        if name in given:
            raise ValueError(f"--set: got {name} twice, expected it once")
        given[name] = canonical(value)
    return given


def _executor(options: argparse.Namespace, *, captioned: bool) -> "Executor":
    """Return who makes the items: this process, or a cluster."""
    captioned = captioned and is_captioned(options)
    if options.ray is None:
        from nti.datasets.run import Here

        captioner = chosen_captioner(options) if captioned else None
        return Here(load_model(options), captioner=captioner, output=options.output)
    from nti.datasets.cluster import Cluster, ModelRequest

    names = {name: getattr(options, name) for name in ("checkpoint", "vae", "captioner")}
    paths = {name: None if path is None else str(path.resolve()) for name, path in names.items()}
    request = ModelRequest(
        **paths, device=options.device, dtype=options.dtype, backend=options.backend,
        memory=options.memory, execution=options.execution,
        captioner_model=options.captioner_model, candidates=candidates_of(options),
        captioned=captioned,
    )  # fmt: skip
    return Cluster(
        options.ray, request, cpus_per_worker=options.cpus_per_worker or 1, workers=options.workers
    )


def _show(shown: "Shown", state: "Progress") -> None:
    """Show how far the run is: items done, failed, per minute, and the time left."""
    facts = {
        "failed": float(state.failed),
        "per_minute": state.per_minute,
        "seconds_left": state.seconds_left,
    }
    shown.show(state.done + state.failed, state.total, lambda: facts)
