"""The command line: `nti demo | invert | generate | reconstruct | edit | sweep | inpaint | align |
attention | report | inspect | convert | methods | plan | export | run | evaluate | caption`, one
file a command.

Nothing heavy is imported before a command runs, so `nti --help` answers at once.
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from nti import __version__
from nti.cli import (
    align,
    attention,
    caption,
    convert,
    demo,
    edit,
    evaluate,
    export,
    generate,
    inpaint,
    inspect,
    invert,
    methods,
    plan,
    reconstruct,
    report,
    run,
    sweep,
)
from nti.cli.options import add_telling_options
from nti.cli.terminal import Terminal, Terminated

__all__ = ["main"]

COMMANDS = (
    demo, invert, generate, reconstruct, edit, sweep, inpaint, align, attention, report, inspect,
    convert, methods, plan, export, run, evaluate, caption,
)  # fmt: skip
"""Each has `add`, which declares its options and says what runs it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or what the command returns; 2 after one line that says what is wrong; 130 or 143 after
        SIGINT or SIGTERM; 1 after a traceback, where the fault is this program's.

    """
    _spin_less()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parser().parse_args(given)
    except WrongCall as error:
        return Terminal(as_json="--json" in given).fail(str(error), 2)
    terminal = options.terminal = Terminal(quiet=options.quiet, as_json=options.json)
    with terminal.listening(), _endable(terminal):
        try:
            return int(options.run(options) or 0)
        except (ValueError, OSError, MemoryError) as error:
            return terminal.fail(f"{str(error) or type(error).__name__}{_notes(error)}", 2)
        except KeyboardInterrupt as end:
            return terminal.fail(f"interrupted{_notes(end)}", 130)
        except Terminated as end:
            return terminal.fail(f"terminated{_notes(end)}", 143)
        except Exception as error:
            from nti.errors import is_out_of_memory

            if is_out_of_memory(error):
                return terminal.fail(f"{error}{_notes(error)}", 2)
            return _report(terminal)


def _spin_less() -> None:
    """Have OpenMP's threads wait for each other asleep after a short while.

    They spin, and where other programs use the cores a step then takes many times as long. Not to
    spin at all doubles a small model's time on a quiet machine. The variable is that of GCC's
    OpenMP, which PyTorch's builds for Linux bring along. It counts once torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextmanager
def _endable(terminal: Terminal) -> Iterator[None]:
    """Have SIGINT and SIGTERM end a command in order.

    What a handler raises is lost where the interpreter happens to be in a `__del__`. So it is
    raised once more at the next step (`Terminal.go_on`).
    """

    def end(number: int, _: object) -> None:
        terminal.ended = KeyboardInterrupt if number == signal.SIGINT else Terminated
        raise terminal.ended

    before = {}
    # Signals come to the main thread alone, and a job in the background may ignore SIGINT.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _notes(error: BaseException) -> str:
    """Return what a command has added to an exception (`BaseException.add_note`)."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def _report(terminal: Terminal) -> int:
    """Show a fault of this program whole, as only its makers can mend it."""
    terminal.err.write(traceback.format_exc())
    return terminal.fail(
        f"this is a fault of nti {__version__}, not of yours: please report it with the lines above"
        " and the command that led to it",
        1,
    )


class WrongCall(Exception):
    """Arguments that are none of a command."""


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are told as all others are."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        raise WrongCall(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nti",
        description="Invert a photograph, reconstruct it, edit it by changing its caption's words.",
    )
    parser.add_argument("--version", action="version", version=f"nti {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for parser_of_one in commands.choices.values():
        add_telling_options(parser_of_one)
    return parser
