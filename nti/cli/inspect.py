"""`nti inspect`: what a checkpoint or a saved inversion holds."""

import argparse
from pathlib import Path

from nti.cli.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "inspect", help="say what a checkpoint or a saved inversion holds"
    )
    command.add_argument("file", type=Path, metavar="FILE")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the description."""
    from nti.inspection import describe_file

    options.terminal.table(describe_file(options.file))
