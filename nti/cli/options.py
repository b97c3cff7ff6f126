"""What the commands share: options of the model and of edits, and the checks of their files."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nti.parsing import parse_assignment, parse_blend, parse_cross_window, parse_window

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from nti.editing.plan import EditPlan
    from nti.image import MaskLike
    from nti.inversion.inversion import Inversion
    from nti.model import StableDiffusion

__all__ = [
    "Commands",
    "add_edit_options",
    "add_model_options",
    "add_paste_back_option",
    "add_telling_options",
    "load_model",
    "open_inversion",
    "parse_dtype",
    "paste_backer",
    "plan_of",
    "plan_settings",
    "refuse_edits_alone",
]

Commands = Any
"""What `argparse` returns for subcommands; its class is private."""


def add_telling_options(command: argparse.ArgumentParser) -> None:
    """Declare how much a command tells, and whom."""
    command.add_argument(
        "-q", "--quiet", action="store_true", help="tell of nothing but warnings and errors"
    )
    command.add_argument(
        "--json", action="store_true", help="print events for programs: one JSON object a line"
    )


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Declare which model computes, where, and how."""
    command.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="SD v1 weights: a .safetensors file or a diffusers directory (default: the embedded"
        " model)",
    )
    command.add_argument("--vae", type=Path, metavar="PATH", help="another autoencoder's weights")
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is any)")
    command.add_argument(
        "--dtype",
        help="float32, float16, bfloat16 or float64 (default: float16 on cuda, else float32)",
    )
    command.add_argument(
        "--backend",
        default="auto",
        help="who computes the UNet's layers: reference, onednn (float32 on a cpu), triton (cuda),"
        " or auto, the best that passes its check",
    )
    command.add_argument(
        "--memory", default="normal", help="normal (default), or low: compute more, keep less"
    )
    command.add_argument(
        "--execution",
        default="auto",
        help="how the steps run: eager; cuda-graph, captured once and replayed; compiled, which"
        " takes minutes first; or auto (cuda-graph on cuda if it passes its check, else eager)",
    )
    command.add_argument("--steps", type=int, metavar="T", help="timesteps (50)")
    command.add_argument(
        "--guidance", type=float, metavar="W", help="guidance scale (default: the model's own)"
    )


def add_edit_options(command: argparse.ArgumentParser) -> None:
    """Declare what an edit does to the attention."""
    command.add_argument("--mode", help="auto (default), replace, refine or reweight")
    command.add_argument(
        "--cross",
        action="append",
        metavar="F",
        help="share of the steps with the source's cross-attention: 0.8, 0.1:0.8, tiger=0.4",
    )
    command.add_argument(
        "--self",
        dest="self_replace",
        metavar="F",
        help="likewise self-attention (0.5)",
    )
    command.add_argument(
        "--blend", metavar="A:B", help="change only where these words attend, e.g. cat:tiger"
    )
    command.add_argument(
        "--subtract", metavar="A:B", help="change nothing where these words attend"
    )
    command.add_argument(
        "--blend-start", type=float, metavar="F",
        help="share of the steps before blending begins (0.2)",
    )  # fmt: skip
    command.add_argument(
        "--blend-threshold", type=float, metavar="F",
        help="share of its maximum above which a word's attention counts (0.3)",
    )  # fmt: skip
    command.add_argument(
        "--reweight", action="append", default=[], metavar="W=C", help="weigh a word, e.g. tiger=2"
    )


def add_paste_back_option(command: argparse.ArgumentParser) -> None:
    """Declare `--paste-back`."""
    command.add_argument(
        "--paste-back",
        type=Path,
        metavar="IMAGE",
        help="lay the result over the image that was inverted, at its own size",
    )


def parse_dtype(
    name: str | None,
    option: str,
    names: Sequence[str] = ("float32", "float16", "bfloat16", "float64"),
) -> "torch.dtype | None":
    """Return the dtype of a name; None stays None."""
    import torch

    if name not in (None, *names):
        raise ValueError(f"{option}: got {name!r}, expected one of {', '.join(names)}")
    return None if name is None else getattr(torch, name)


def load_model(options: argparse.Namespace) -> "StableDiffusion":
    """Load the model that the options ask for."""
    from nti import model

    return model.load_model(
        options.checkpoint,
        vae=options.vae,
        device=options.device,
        dtype=parse_dtype(options.dtype, "--dtype"),
        backend=options.backend,
        memory=options.memory,
        execution=options.execution,
    )


def open_inversion(options: argparse.Namespace) -> "Inversion":
    """Load the inversion; ValueError where `--steps` is not its own."""
    from nti.inversion.inversion import Inversion

    inversion = Inversion.load(options.inversion)
    if options.steps not in (None, inversion.steps):
        raise ValueError(
            f"--steps: got {options.steps}, expected {inversion.steps}, with which"
            f" {options.inversion} was made: leave the option out or invert again"
        )
    return inversion


def plan_of(
    options: argparse.Namespace, model: "StableDiffusion", inversion: "Inversion"
) -> "EditPlan":
    """Return the plan of the edits that the options describe."""
    from nti.editing.plan import EditPlan

    return EditPlan.create(
        model.tokenizer, inversion.prompt, options.prompt, steps=inversion.steps,
        **plan_settings(options),
    )  # fmt: skip


def plan_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of Prompt-to-Prompt that the options of `add_edit_options` describe."""
    from nti.editing.local_blend import START, THRESHOLD

    own_window = "0.5" if options.self_replace is None else options.self_replace
    return {
        "mode": "auto" if options.mode is None else options.mode,
        "cross_replace": parse_cross_window(options.cross or ["0.8"]),
        "self_replace": parse_window(own_window, "--self"),
        "blend": parse_blend(options.blend),
        "subtract": parse_blend(options.subtract),
        "reweight": dict(parse_assignment(r, "--reweight") for r in options.reweight) or None,
        "blend_start": START if options.blend_start is None else options.blend_start,
        "blend_threshold": THRESHOLD
        if options.blend_threshold is None
        else options.blend_threshold,
    }


EDITS = {
    "--guidance": "guidance",
    "--mode": "mode",
    "--cross": "cross",
    "--self": "self_replace",
    "--blend": "blend",
    "--subtract": "subtract",
    "--blend-start": "blend_start",
    "--blend-threshold": "blend_threshold",
    "--reweight": "reweight",
}
"""What only edits read: the place of each option."""


def refuse_edits_alone(options: argparse.Namespace, why: str) -> None:
    """Raise ValueError for options of edits where no edited prompt is given."""
    given = [name for name, place in EDITS.items() if getattr(options, place) not in (None, [])]
    if given and not options.prompt:
        raise ValueError(f"{', '.join(given)}: got no --prompt, expected an edited prompt, {why}")


def paste_backer(
    options: argparse.Namespace, inversion: "Inversion"
) -> "Callable[[Image.Image, MaskLike | None], Image.Image]":
    """Return what `--paste-back` does to a result and its mask, once the image has proved to fit.

    Outside of a mask the pixels are the image's own.
    """
    if options.paste_back is None:
        return lambda result, mask: result
    from nti.image import match_original, paste_back

    original, placement = match_original(options.paste_back, inversion.placement)
    return lambda result, mask: paste_back(result, original, placement, mask=mask)
