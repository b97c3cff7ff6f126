"""`nti align`: whose attention each token of an edited prompt receives."""

import argparse
import warnings

from nti.cli.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "align", help="show which source token each token of an edited prompt attends as"
    )
    command.add_argument("source", metavar="SOURCE", help="what the image shows")
    command.add_argument("target", metavar="TARGET", help="the edited prompt")
    command.add_argument("--mode", default="auto", help="auto (default), replace or refine")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print both prompts' tokens and the alignment."""
    from nti.editing.alignment import align
    from nti.editing.alignment_table import describe, token_table
    from nti.networks.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    source, target = tokenizer.encode(options.source), tokenizer.encode(options.target)
    for prompt in (source, target):
        for message in filter(None, (prompt.cut_message, prompt.weights_message)):
            warnings.warn(message, stacklevel=2)
    alignment = align(options.mode, source, target)
    table = f"{token_table(source, target)}\n\n{describe(alignment, source, target)}"
    options.terminal.table(table)
