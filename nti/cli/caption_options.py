"""The options of captioners, which say what an image shows where no prompt is given."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nti.evaluation.captions import Captioner

__all__ = ["add_caption_options", "candidates_of", "chosen_captioner", "is_captioned"]


def add_caption_options(command: argparse.ArgumentParser) -> None:
    """Declare whose weights write or choose captions."""
    command.add_argument(
        "--captioner", type=Path, metavar="PATH",
        help="who captions images: CoCa or CLIP as open_clip saves them, a folder or a file"
        " (default with the embedded model: a small CLIP of its world)",
    )  # fmt: skip
    command.add_argument(
        "--captioner-model", metavar="NAME", help="of a file: open_clip's name of its architecture"
    )
    command.add_argument(
        "--candidates",
        type=Path,
        metavar="FILE",
        help="captions, one a line, that CLIP chooses from",
    )


def is_captioned(options: argparse.Namespace) -> bool:
    """Whether there is a captioner: one that is named, or that of the embedded model."""
    return options.captioner is not None or getattr(options, "checkpoint", None) is None


def candidates_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the captions to choose from; ValueError for a file that holds none."""
    if options.candidates is None:
        return ()
    try:
        lines = options.candidates.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--candidates: {options.candidates} cannot be read ({error})") from error
    found = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ValueError(f"--candidates: got {options.candidates}, expected a caption in it")
    return found


def chosen_captioner(options: argparse.Namespace) -> "Captioner":
    """Return the captioner; ValueError where there is none."""
    from nti.evaluation.captions import captioner_of

    if not is_captioned(options):
        raise ValueError(
            "--prompt: got none, expected what the image shows: give one, or --captioner with"
            " weights of CoCa or CLIP"
        )
    return captioner_of(options.captioner, options.captioner_model, candidates_of(options))
