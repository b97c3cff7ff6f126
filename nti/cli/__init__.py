"""The command line: `nti demo | invert | generate | reconstruct | edit | align | attention |
inspect`, one file a command.

Nothing heavy is imported before a command runs, so `nti --help` answers at once.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from nti import __version__
from nti.cli import align, attention, demo, edit, generate, inspect, invert, reconstruct

__all__ = ["main"]

COMMANDS = (demo, invert, generate, reconstruct, edit, align, attention, inspect)
"""Each has `add`, which declares its options and says what runs it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after printing one line that says what is wrong."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            options.run(options)
        except (ValueError, OSError, RuntimeError) as error:
            print(f"nti: error: {'; '.join(str(error).split(chr(10)))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("nti: interrupted", file=sys.stderr)
            return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with 2."""
        self.exit(2, f"nti: error: {message} (see `{self.prog} --help`)\n")


def _print_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    if issubclass(category, UserWarning):
        print(f"nti: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nti",
        description="Invert a photograph, reconstruct it, edit it by changing its caption's words.",
    )
    parser.add_argument("--version", action="version", version=f"nti {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
