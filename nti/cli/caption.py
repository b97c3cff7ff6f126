"""`nti caption`: say what images show."""

import argparse
import csv
import io
import re
from functools import partial
from pathlib import Path

from nti.cli.caption_options import add_caption_options, chosen_captioner
from nti.cli.options import Commands
from nti.cli.outputs import check_output, keep
from nti.cli.progress import progress
from nti.cli.run import SOME_FAILED
from nti.files import write_file

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("caption", help="say what images show")
    command.add_argument("image", type=Path, nargs="+", metavar="IMAGE")
    add_caption_options(command)
    command.add_argument(
        "--top", type=int, default=1, metavar="N", help="print the N best of each image (1)"
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="CSV",
        help="write images and captions as a manifest for `nti run`",
    )  # fmt: skip
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Caption, print and save."""
    from nti.arguments import a_whole_number
    from nti.image import open_image

    count = a_whole_number("--top", options.top, 1)
    output = None if options.output is None else check_output(options, options.output, "manifest")
    captioner = chosen_captioner(options)
    lines: list[str] = []
    rows: list[tuple[Path, str]] = []
    with progress(options.terminal, "looking") as shown:
        for number, path in enumerate(options.image, 1):
            try:
                best = captioner.ranked(open_image(path), count)
            except ValueError as error:  # the other images are captioned all the same
                options.terminal.warn(str(error))
                continue
            rows.append((path.resolve(), best[0].text))
            lines += [f"{path}: {c.text}{f' ({c.score:.3f})' if count > 1 else ''}" for c in best]
            shown(number, len(options.image))
    if not rows:
        raise ValueError("got no image that can be read, expected one or more")
    options.terminal.table("\n".join(lines))
    if output is not None:
        keep(output, partial(_write, rows))
        options.terminal.wrote(output, f"{len(rows)} captions")
    return SOME_FAILED if len(rows) < len(options.image) else 0


def _write(rows: list[tuple[Path, str]], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", "image", "prompt"])
    seen: set[str] = set()
    for image, caption in rows:
        name = plain = re.sub(r"[^\w .-]|^[\W_]+|[^\w)]+$", "", image.stem)[:100] or "image"
        number = 1
        while name.lower() in seen:
            number += 1
            name = f"{plain}-{number}"
        seen.add(name.lower())
        writer.writerow([name, image, caption])
    write_file(path, text.getvalue().encode())
