"""What a command tells: people, on stdout and stderr, or programs, as one JSON object a line.

Telling never fails a command. Characters that an encoding lacks are escaped, and what a full disk
or a closed pipe does not take is dropped.
"""

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Stream", "Terminal", "Terminated"]


class Terminated(BaseException):
    """SIGTERM has come."""


class Stream:
    """A text stream that never raises; of None, as Python has it for a closed one, nothing comes.

    It offers what logging and tqdm ask of a file.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write at once, as much as is possible."""
        with contextlib.suppress(OSError, ValueError):
            self.require(text)
        return len(text)

    def require(self, text: str) -> None:
        """Write at once; raise what the stream raises, once."""
        if self._stream is not None:
            safe = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
            try:
                self._stream.write(safe)
                self._stream.flush()
            except (OSError, ValueError):
                self._close()
                raise

    def flush(self) -> None:
        """Do nothing: `write` has."""

    def isatty(self) -> bool:
        """Whether a person reads it."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def _close(self) -> None:
        """Let what is left in the stream's buffer go nowhere, or Python would try again at its end
        and fail then.
        """
        with contextlib.suppress(OSError, ValueError, AttributeError):
            assert self._stream is not None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._stream = None


class Terminal:
    """Where a command's words go.

    Results go to stdout, all else to stderr. `quiet` leaves errors, warnings and printed tables.
    With `as_json` stdout has events instead (docs/command-line.md).
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.out, self.err = Stream(sys.stdout), Stream(sys.stderr)
        self.ended: type[BaseException] | None = None
        """What a signal has raised, once one has come."""

    def go_on(self) -> None:
        """Raise what a signal has raised, if that was lost."""
        if self.ended is not None:
            raise self.ended

    def event(self, name: str, **facts: Any) -> None:
        """Write one JSON line, where those are asked for."""
        if self.as_json:
            self.out.write(json.dumps({"event": name, **facts}) + "\n")

    def wrote(self, path: Path | str, note: str = "") -> None:
        """Say that a file is there."""
        self.event("wrote", path=str(path), note=note)
        if not self.quiet and not self.as_json:
            self.out.write(f"wrote {path}{f' ({note})' if note else ''}\n")

    def say(self, text: str) -> None:
        """Say something by the way."""
        self.event("message", text=text)
        if not self.quiet and not self.as_json:
            self.out.write(f"{text}\n")

    def table(self, text: str) -> None:
        """Print what a command was called for; OSError where a full disk does not take it."""
        self.event("table", text=text)
        if not self.as_json:
            try:
                self.out.require(f"{text}\n")
            except BrokenPipeError:
                pass  # its reader has seen enough
            except OSError as error:
                message = f"stdout cannot be written: {error.strerror}"
                raise OSError(error.errno, message) from error

    def note(self, text: str, **facts: Any) -> None:
        """Say something of how the run goes."""
        self.event("note", text=text, **facts)
        if not self.quiet:
            self.err.write(f"{text}\n")

    def warn(self, message: str) -> None:
        """Warn of something that does not stop the command."""
        self.event("warning", message=message)
        self.err.write(f"nti: warning: {message}\n")

    def fail(self, message: str, code: int) -> int:
        """Say what has ended the command, and return its exit code."""
        line = "; ".join(part.strip() for part in message.splitlines() if part.strip())
        self.event("error", message=line, exit_code=code)
        self.err.write(f"nti: {'error: ' if code == 2 else ''}{line}\n")
        return code

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Have warnings and the library's log come here."""
        handler = logging.StreamHandler(self.err)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("nti")
        level, propagates = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.propagate = False  # whatever a library has done to the root logger
        logger.setLevel(logging.WARNING if self.quiet else logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = self._showwarning
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates

    def _showwarning(
        self, message: Warning | str, category: type[Warning], *_: object, **__: object
    ) -> None:
        if issubclass(category, UserWarning):
            self.warn(str(message))
