"""`nti invert`: an image and its caption to a saved inversion."""

import argparse
import hashlib
import os
from pathlib import Path

from nti.cli.caption_options import add_caption_options, chosen_captioner
from nti.cli.options import Commands, add_model_options, load_model, parse_dtype
from nti.cli.outputs import check_output, keep
from nti.cli.progress import InversionProgress, progress
from nti.parsing import parse_rule, parse_size

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("invert", help="invert an image")
    add_model_options(command)
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument(
        "--prompt", help="what the image shows (default: what a captioner says, see --captioner)"
    )
    add_caption_options(command)
    command.add_argument(
        "--size",
        metavar="N|WxH|native",
        help="pixels (default: the model's square); native: the image's own, rounded",
    )
    command.add_argument(
        "--fit", default="crop", help="how to reach it: crop (default), pad or stretch"
    )
    command.add_argument(
        "--method", default="null-text",
        help="null-text (default), direct, negative-prompt, ...: `nti methods` lists them",
    )  # fmt: skip
    add_method_options(command)
    command.add_argument(
        "--inner-steps", type=int, default=10, metavar="N", help="iterations a timestep (10)"
    )
    command.add_argument(
        "--noise-at",
        default="target",
        help="timestep at which the pivot's noise is predicted: target (default, as published) or"
        " current (as the paper writes)",
    )
    command.add_argument(
        "--learning-rate",
        default="published",
        metavar="RULE",
        help="of Adam: published (default, 0.01 falling to 0.005), or a number for all timesteps",
    )
    command.add_argument(
        "--early-stop",
        default="published",
        metavar="RULE",
        help="loss below which a timestep ends: published (default, 1e-5 rising to 1e-3), or a"
        " number for all timesteps (0: never)",
    )
    command.add_argument(
        "--store", metavar="DTYPE",
        help="save in float16 or bfloat16, half the size (default: as computed)",
    )  # fmt: skip
    command.add_argument(
        "--restart", action="store_true",
        help="begin anew, where the same output has the state of a run that was ended",
    )  # fmt: skip
    command.add_argument("-o", "--output", type=Path, required=True, metavar="X.nti.safetensors")
    command.set_defaults(run=run)


def add_method_options(command: argparse.ArgumentParser) -> None:
    """Declare the settings that some methods have."""
    command.add_argument(
        "--pivot", default="ddim",
        help="ddim (default), or fixed-point or anderson, which solve each inverse step",
    )  # fmt: skip
    command.add_argument(
        "--pivot-iterations", type=int, default=5, metavar="N", help="of each such step (5)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the methods that draw noise (0)")
    command.add_argument(
        "--towards-null", type=float, metavar="F",
        help="how far from the prompt towards the empty one to start: negative-prompt (0),"
        " null-text-fast (1.5 / W)",
    )  # fmt: skip
    command.add_argument(
        "--pull-share", type=float, default=1.0, metavar="F",
        help="direct: how much of a step's error is taken away (1)",
    )  # fmt: skip
    command.add_argument(
        "--pull-every", type=int, default=1, metavar="K", help="direct: at every K-th step (1)"
    )


def run(options: argparse.Namespace) -> None:
    """Invert the image and save, or go on where the same command was ended."""
    from nti.image import open_image
    from nti.inversion.invert import InversionSettings, invert
    from nti.inversion.null_text import published_learning_rate, published_threshold
    from nti.inversion.state import StateFile

    output = check_output(options, options.output, "inversion")
    state = StateFile(state_path(output), restart=options.restart)
    open_image(options.image)  # what cannot be read shows before the model is loaded
    size = parse_size(options.size)
    dtype = parse_dtype(options.store, "--store", ("float16", "bfloat16"))
    settings = InversionSettings(
        steps=50 if options.steps is None else options.steps,
        guidance_scale=options.guidance,
        inner_steps=options.inner_steps,
        method=options.method,
        noise_at=options.noise_at,
        learning_rate=parse_rule(options.learning_rate, published_learning_rate, "--learning-rate"),
        threshold=parse_rule(options.early_stop, published_threshold, "--early-stop"),
        pivot=options.pivot,
        pivot_iterations=options.pivot_iterations,
        seed=options.seed,
        towards_null=options.towards_null,
        pull_share=options.pull_share,
        pull_every=options.pull_every,
    )
    model = load_model(options)
    prompt = _prompt(options)
    try:
        with progress(options.terminal, "inverting") as shown:
            watched = settings.row.watched
            inversion = invert(
                model, options.image, prompt, size=size, fit=options.fit,
                callback=None if watched else shown,
                watch=InversionProgress(shown, model.schedule(settings.steps), settings)
                if watched
                else None,
                state=state, **vars(settings),
            )  # fmt: skip
        try:
            keep(output, lambda path: inversion.save(path, dtype=dtype))
        except ValueError as error:  # values that --store cannot hold
            if state.flush():
                error.add_note(f"without --store the same command goes on from {state.path}")
            raise
        except OSError:
            state.flush()
            raise
    except ValueError:  # the same command would end like this again
        raise
    except BaseException as error:
        if state.path.exists():
            error.add_note(f"the same command goes on from {state.path}")
        raise
    state.remove()
    options.terminal.wrote(output)


def _prompt(options: argparse.Namespace) -> str:
    """Return what the image shows, as the user or else a captioner says."""
    if options.prompt is not None:
        return str(options.prompt)
    from nti.image import open_image

    (found,) = chosen_captioner(options)([open_image(options.image)])
    options.terminal.say(f"caption: {found}")
    return found


def state_path(output: Path) -> Path:
    """Where the state of an unfinished inversion is: beside it, by a name that is not too long."""
    name = output.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return output.with_name(f"{name}.state")
