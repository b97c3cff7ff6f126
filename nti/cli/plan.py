"""`nti plan`: an edit's words as numbers, for runtimes without a tokenizer."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import Commands, add_edit_options, plan_settings
from nti.cli.outputs import check_output, keep

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "plan", help="write what an edit's words ask of each step, for other runtimes"
    )
    command.add_argument(
        "inversion", type=Path, nargs="?", metavar="INVERSION",
        help="whose prompt is edited, in its steps; or --source",
    )  # fmt: skip
    command.add_argument("--source", metavar="P", help="the source's prompt, without an inversion")
    command.add_argument("--steps", type=int, metavar="T", help="timesteps, with --source (50)")
    command.add_argument(
        "--prompt", action="append", required=True, help="an edited prompt; may be given again"
    )
    add_edit_options(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PLAN.safetensors")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Plan and write."""
    from nti.editing.plan import EditPlan
    from nti.editing.plan_file import write_plan
    from nti.inversion.inversion import Inversion
    from nti.networks.tokenizer import Tokenizer

    if (options.inversion is None) == (options.source is None):
        got = "neither" if options.source is None else "both"
        raise ValueError(f"--source: got {got}, expected it or an INVERSION, which says it")
    output = check_output(options, options.output, "plan")
    source, steps = options.source, 50 if options.steps is None else options.steps
    if options.inversion is not None:
        inversion = Inversion.load(options.inversion)
        if options.steps not in (None, inversion.steps):
            raise ValueError(
                f"--steps: got {options.steps}, expected {inversion.steps}, with which"
                f" {options.inversion} was made: leave the option out"
            )
        source, steps = inversion.prompt, inversion.steps
    tokenizer = Tokenizer()
    plan = EditPlan.create(tokenizer, source, options.prompt, steps=steps, **plan_settings(options))
    keep(output, partial(write_plan, plan=plan, tokenizer=tokenizer))
    notes = [f"{each.mode}: {p}" for each, p in zip(plan.alignments, plan.prompts, strict=True)]
    options.terminal.wrote(output, "; ".join(notes))
