"""The command line: `nti demo | invert | reconstruct | edit | align | attention | inspect`.

Nothing heavy is imported before a command runs, so `nti --help` answers at once.
"""

import argparse
import dataclasses
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nti import __version__
from nti.option_values import parse_assignment, parse_cross_window, parse_size, parse_window

if TYPE_CHECKING:
    from PIL import Image

    from nti.inversion.record import Inversion
    from nti.model import StableDiffusion

__all__ = ["main"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


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
    common = _common_options()

    demo = commands.add_parser(
        "demo", parents=[common], help="invert and edit sample images with the embedded model"
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("nti-demo"), metavar="DIR")
    demo.set_defaults(run=_demo)

    invert = commands.add_parser("invert", parents=[common], help="invert an image")
    invert.add_argument("image", type=Path, metavar="IMAGE")
    invert.add_argument("--prompt", required=True, help="what the image shows")
    invert.add_argument(
        "--size",
        metavar="N|WxH|native",
        help="pixels (default: the model's square); native: the image's own, rounded",
    )
    invert.add_argument(
        "--fit", default="crop", help="how to reach it: crop (default), pad or stretch"
    )
    invert.add_argument(
        "--method", default="null-text", help="null-text (default), negative-prompt or ddim"
    )
    invert.add_argument(
        "--inner-steps", type=int, default=10, metavar="N", help="iterations a timestep (10)"
    )
    invert.add_argument("-o", "--output", type=Path, required=True, metavar="X.nti.safetensors")
    invert.set_defaults(run=_invert)

    reconstruct = commands.add_parser(
        "reconstruct", parents=[common], help="sample an inversion again"
    )
    reconstruct.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    _paste_back_option(reconstruct)
    reconstruct.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    reconstruct.set_defaults(run=_reconstruct)

    edit = commands.add_parser("edit", parents=[common], help="edit an inverted image by its words")
    _edit_options(edit)
    edit.set_defaults(run=_edit)

    align = commands.add_parser(
        "align", help="show which source token each token of an edited prompt attends as"
    )
    align.add_argument("source", metavar="SOURCE", help="what the image shows")
    align.add_argument("target", metavar="TARGET", help="the edited prompt")
    align.add_argument("--mode", default="auto", help="auto (default), replace or refine")
    align.set_defaults(run=_align)

    attention = commands.add_parser(
        "attention", parents=[common], help="show where each token attends"
    )
    attention.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    attention.add_argument(
        "--words", action="store_true", help="one map a word rather than a token"
    )
    attention.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    attention.set_defaults(run=_attention)

    inspect = commands.add_parser(
        "inspect", help="say what a checkpoint or a saved inversion holds"
    )
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.set_defaults(run=_inspect)
    return parser


def _common_options() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="SD v1 weights: a .safetensors file or a diffusers directory (default: the embedded"
        " model)",
    )
    common.add_argument("--vae", type=Path, metavar="PATH", help="another autoencoder's weights")
    common.add_argument("--device", help="cpu or cuda (default: cuda if there is any)")
    common.add_argument(
        "--dtype",
        help="float32, float16, bfloat16 or float64 (default: float16 on cuda, else float32)",
    )
    common.add_argument(
        "--backend",
        default="auto",
        help="who computes attention, norms and gates: reference, triton or auto (triton for half"
        " precision on cuda)",
    )
    common.add_argument(
        "--memory", default="normal", help="normal (default), or low: compute more, keep less"
    )
    graphs = common.add_mutually_exclusive_group()
    graphs.add_argument(
        "--compile", action="store_true", help="compile the steps first: minutes, then faster"
    )
    graphs.add_argument(
        "--cuda-graph",
        action=argparse.BooleanOptionalAction,
        help="on cuda, record the steps as CUDA graphs: no launch overhead, without compiling"
        " (default: those of an inversion)",
    )
    common.add_argument("--steps", type=int, metavar="T", help="timesteps (50)")
    common.add_argument(
        "--guidance", type=float, metavar="W", help="guidance scale (default: the model's own)"
    )
    return common


def _edit_options(edit: argparse.ArgumentParser) -> None:
    edit.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    edit.add_argument(
        "--prompt", action="append", required=True, help="an edited prompt; may be given again"
    )
    edit.add_argument("--mode", default="auto", help="auto (default), replace, refine or reweight")
    edit.add_argument(
        "--cross",
        action="append",
        metavar="F",
        help="share of the steps with the source's cross-attention: 0.8, 0.1:0.8, tiger=0.4",
    )
    edit.add_argument(
        "--self",
        dest="self_replace",
        default="0.5",
        metavar="F",
        help="likewise self-attention (0.5)",
    )
    edit.add_argument(
        "--blend", metavar="A:B", help="change only where these words attend, e.g. cat:tiger"
    )
    edit.add_argument("--subtract", metavar="W", help="change nothing where these words attend")
    edit.add_argument(
        "--reweight", action="append", default=[], metavar="W=C", help="weigh a word, e.g. tiger=2"
    )
    edit.add_argument(
        "--no-replay", action="store_true", help="compute the source's branch, as published"
    )
    _paste_back_option(edit)
    edit.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PNG",
        help="with several prompts: PNG-1, PNG-2, ...",
    )


def _paste_back_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--paste-back",
        type=Path,
        metavar="IMAGE",
        help="lay the result over the image that was inverted, at its own size",
    )


def _load(options: argparse.Namespace) -> "StableDiffusion":
    import torch

    from nti.model import load_model

    dtypes = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}
    if options.dtype not in (None, *dtypes):
        raise ValueError(f"--dtype: got {options.dtype!r}, expected one of {', '.join(dtypes)}")
    dtype = dtypes.get(options.dtype)
    model = load_model(
        options.checkpoint,
        vae=options.vae,
        device=options.device,
        dtype=dtype,
        backend=options.backend,
        memory=options.memory,
        cuda_graph=options.cuda_graph is not False,
    )
    if options.compile or options.cuda_graph:
        from nti.compilation import compile_model

        return compile_model(model, backend="inductor" if options.compile else "cuda-graph")
    return model


def _open_inversion(options: argparse.Namespace) -> "Inversion":
    from nti.inversion.record import Inversion

    inversion = Inversion.load(options.inversion)
    if options.steps not in (None, inversion.steps):
        raise ValueError(
            f"--steps: got {options.steps}, expected {inversion.steps}, with which"
            f" {options.inversion} was made: leave the option out or invert again"
        )
    return inversion


def _writable(path: Path, *, image: bool = True) -> Path:
    """Check the output's name and make its folder before the work, so that none of it is lost."""
    if path.is_dir():
        raise ValueError(f"--output: got the directory {path}, expected a file's name")
    if image and path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"--output: got {path}, expected a name that ends in {IMAGE_SUFFIXES[0]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _finish(
    options: argparse.Namespace, inversion: "Inversion"
) -> "Callable[[Image.Image], Image.Image]":
    """Return what `--paste-back` does to a result, once its image has proved to fit."""
    if options.paste_back is None:
        return lambda result: result
    from nti.image import match_original, paste_back

    original, placement = match_original(options.paste_back, inversion.placement)
    return lambda result: paste_back(result, original, placement)


def _demo(options: argparse.Namespace) -> None:
    from nti.demo import run_demo

    run_demo(
        _load(options),
        options.output,
        steps=50 if options.steps is None else options.steps,
        guidance_scale=options.guidance,
    )


def _invert(options: argparse.Namespace) -> None:
    from nti.inversion.invert import invert

    output = _writable(options.output, image=False)
    inversion = invert(
        _load(options),
        options.image,
        options.prompt,
        size=parse_size(options.size),
        fit=options.fit,
        steps=50 if options.steps is None else options.steps,
        guidance_scale=options.guidance,
        inner_steps=options.inner_steps,
        method=options.method,
        progress=True,
    )
    inversion.save(output)
    print(f"wrote {output}")


def _reconstruct(options: argparse.Namespace) -> None:
    from nti.inversion.sampling import reconstruct

    inversion = _open_inversion(options)
    if options.guidance is not None:
        inversion = dataclasses.replace(inversion, guidance_scale=options.guidance)
    output = _writable(options.output)
    finish = _finish(options, inversion)
    finish(reconstruct(_load(options), inversion, progress=True)).save(output)
    print(f"wrote {output}")


def _edit(options: argparse.Namespace) -> None:
    from nti.editing.prompt_to_prompt import edit

    inversion = _open_inversion(options)
    output = _writable(options.output)
    finish = _finish(options, inversion)
    source, separator, edited = (options.blend or "").partition(":")
    result = edit(
        _load(options),
        inversion,
        options.prompt,
        mode=options.mode,
        cross_replace=parse_cross_window(options.cross or ["0.8"]),
        self_replace=parse_window(options.self_replace, "--self"),
        blend=(source, edited) if separator else (options.blend or None),
        subtract=options.subtract,
        reweight=dict(parse_assignment(r, "--reweight") for r in options.reweight) or None,
        replay=not options.no_replay,
        guidance_scale=options.guidance,
        progress=True,
    )
    for number, (image, prompt) in enumerate(zip(result.images, options.prompt, strict=True), 1):
        path = output if len(result.images) == 1 else output.with_stem(f"{output.stem}-{number}")
        finish(image).save(path)
        print(f"wrote {path} ({result.alignments[number - 1].mode}: {prompt})")


def _align(options: argparse.Namespace) -> None:
    from nti.editing.alignment import align
    from nti.editing.alignment_table import describe, token_table
    from nti.networks.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    source, target = tokenizer.encode(options.source), tokenizer.encode(options.target)
    alignment = align(options.mode, source, target)
    print(f"{token_table(source, target)}\n\n{describe(alignment, source, target)}")


def _attention(options: argparse.Namespace) -> None:
    from nti.editing.attention_grid import attention_grid

    inversion = _open_inversion(options)
    output = _writable(options.output)
    grid = attention_grid(_load(options), inversion, by_word=options.words, progress=True)
    grid.save(output)
    print(f"wrote {output}")


def _inspect(options: argparse.Namespace) -> None:
    from nti.inspection import describe_file

    print(describe_file(options.file))
