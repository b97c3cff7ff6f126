"""`nti methods`: the inversion methods, what each keeps and what each costs."""

import argparse

from nti.cli.options import Commands
from nti.inversion.methods import METHODS, MOST, Method, passes

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("methods", help="list the inversion methods")
    command.add_argument("--steps", type=int, default=50, metavar="T", help="timesteps (50)")
    command.add_argument(
        "--inner-steps", type=int, default=10, metavar="N", help="iterations a timestep (10)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    from nti.arguments import a_whole_number

    steps = a_whole_number("--steps", options.steps, 1, MOST)
    inner_steps = a_whole_number("--inner-steps", options.inner_steps, 1, MOST)
    head = ("method", "arXiv", "keeps", "forward", "backward", "what it does")
    rows = [head, *(_row(method, steps, inner_steps) for method in METHODS.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = (
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )
    options.terminal.table("\n".join(lines))
    options.terminal.note(
        "forward and backward are passes of the UNet for one image, at most: an early stop saves"
        f" some; {steps} timesteps, {inner_steps} iterations at each"
    )


def _row(method: Method, steps: int, inner_steps: int) -> tuple[str, ...]:
    forward, backward = passes(method, steps, inner_steps)
    return method.name, method.paper, method.stores, str(forward), str(backward), method.summary
