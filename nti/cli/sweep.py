"""`nti sweep`: one picture of an edit at several values of one setting."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import (
    Commands,
    add_edit_options,
    add_model_options,
    load_model,
    open_inversion,
    plan_settings,
)
from nti.cli.outputs import check_output, keep
from nti.cli.progress import progress
from nti.files import write_picture
from nti.parsing import parse_window

__all__ = ["add"]

OVER = {
    "reweight": ("reweight", None),
    "cross": ("cross_replace", "cross"),
    "self": ("self_replace", "self_replace"),
    "guidance": ("guidance_scale", "guidance"),
}
"""The setting that each name stands for, and the place of the option that it makes useless."""


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "sweep", help="draw an edit at several values of one setting, side by side"
    )
    add_model_options(command)
    command.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    command.add_argument("--prompt", required=True, help="the edited prompt")
    command.add_argument(
        "--over", required=True, metavar="SETTING",
        help="reweight (the factor of --word), cross, self or guidance",
    )  # fmt: skip
    command.add_argument(
        "--values", required=True, metavar="V,V,...",
        help="numbers between commas; windows also as START:END",
    )  # fmt: skip
    command.add_argument("--word", metavar="W", help="of the edited prompt, to weigh")
    add_edit_options(command)
    command.add_argument("--negative-prompt", metavar="P", help="what the edits shall not show")
    command.add_argument(
        "--at-once", type=int, default=4, metavar="N", help="edits in one batch (4)"
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Edit at each value, and draw the sheet."""
    from nti.arguments import a_choice
    from nti.editing.sweep import sweep

    inversion = open_inversion(options)
    output = check_output(options, options.output, "picture")
    over, place = OVER[a_choice("--over", options.over, OVER)]
    if place is not None and getattr(options, place) is not None:
        raise ValueError(
            f"--{options.over}: got it beside --over {options.over}, expected --values alone: leave"
            " it out"
        )
    values = [parse_window(value, "--values") for value in options.values.split(",")]
    model = load_model(options)
    with progress(options.terminal, "editing") as callback:
        sheet = sweep(
            model, inversion, options.prompt, over=over, values=values, word=options.word,
            guidance_scale=options.guidance, negative_prompt=options.negative_prompt,
            at_once=options.at_once, callback=callback, **plan_settings(options),
        )  # fmt: skip
    keep(output, partial(write_picture, sheet))
    options.terminal.wrote(output, f"{len(values)} edits over {options.over}")
