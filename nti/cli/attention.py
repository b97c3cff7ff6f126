"""`nti attention`: where each token attends, in the image and in edits, or what goes together."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import (
    Commands,
    add_edit_options,
    add_model_options,
    load_model,
    open_inversion,
    plan_of,
    refuse_edits_alone,
)
from nti.cli.outputs import check_output, keep
from nti.cli.progress import progress
from nti.files import write_picture

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("attention", help="show where each token attends")
    add_model_options(command)
    command.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    command.add_argument("--words", action="store_true", help="one map a word rather than a token")
    command.add_argument(
        "--prompt", action="append", default=[], help="an edit whose maps to show too"
    )
    add_edit_options(command)
    command.add_argument(
        "--level", type=int, metavar="N",
        help="of the UNet, 0 the finest (default: the one that local blend reads)",
    )  # fmt: skip
    command.add_argument(
        "--place", action="append",
        help="of the UNet: down, middle or up; may be given again (default: down and up)",
    )  # fmt: skip
    command.add_argument(
        "--block", type=int, metavar="N",
        help="which transformer of a place and level, 0 the first (default: all)",
    )  # fmt: skip
    command.add_argument(
        "--components", type=int, metavar="N",
        help="show the N principal components of the self-attention instead",
    )  # fmt: skip
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the maps."""
    from nti.editing.attention_grid import attention_grid, component_grid

    inversion = open_inversion(options)
    output = check_output(options, options.output, "picture")
    if options.components is not None and (options.prompt or options.words):
        raise ValueError(
            "--components: got --prompt or --words too, expected the source alone: leave one out"
        )
    refuse_edits_alone(options, "as the image's own attention does not depend on it")
    places = tuple(options.place or ("down", "up"))
    model = load_model(options)
    plan = plan_of(options, model, inversion) if options.prompt else None
    with progress(options.terminal, "looking") as callback:
        if options.components is not None:
            grid = component_grid(
                model, inversion, options.components,
                level=options.level, places=places, block=options.block, callback=callback,
            )  # fmt: skip
        else:
            grid = attention_grid(
                model, inversion, plan, by_word=options.words, guidance_scale=options.guidance,
                level=options.level, places=places, block=options.block, callback=callback,
            )  # fmt: skip
    keep(output, partial(write_picture, grid))
    options.terminal.wrote(output)
