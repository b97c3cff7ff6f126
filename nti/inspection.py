"""What a file holds, in words: for `nti inspect`."""

from pathlib import Path

from nti.inversion.inversion import Inversion
from nti.model import CONFIG_KEY, layouts, locate, parameter_shapes, skeletons
from nti.weights_loader import NetworkReport, examine, not_finite, read_metadata
from nti.weights_loader.metadata import printable

__all__ = ["describe_file"]

NAMES = {"unet": "UNet", "vae": "autoencoder", "text": "text encoder"}


def describe_file(path: Path) -> str:
    """Describe a saved inversion or a checkpoint, file or directory, with all that is wrong.

    Every value of a checkpoint is read once, but only one tensor at a time is in memory. Raises
    ValueError for a file that is neither.
    """
    if path.is_file() and path.suffix == ".safetensors" and "inversion" in read_metadata(path):
        return _describe_inversion(Inversion.load(path))
    files, config = locate(path)
    shapes = {name: parameter_shapes(network) for name, network in skeletons(config).items()}
    reports = examine(files, layouts(config), shapes)
    unet = config.unet
    lines = [
        f"architecture: {config.name}, {unet.channels} channels x {unet.channel_multipliers},"
        f" context {unet.context_dim}, trained at {config.image_size} px,"
        f" default guidance {config.guidance_scale:g}"
        + (", predicts v" if config.schedule.prediction == "v_prediction" else "")
        + (", takes a mask and a masked image" if config.inpaints else "")
    ]
    lines += [_describe_network(report) for report in reports]
    problems = [p for report in reports for p in (*report.problems, *not_finite(report))]
    lines += [f"problem: {problem}" for problem in problems] or ["no problem found"]
    lines += [
        f"metadata {printable(key)}: {printable(value)}"
        for key, value in sorted(read_metadata(files["unet"]).items())
        if key != CONFIG_KEY
    ]
    return "\n".join(lines)


def _describe_network(report: NetworkReport) -> str:
    name = NAMES[report.network]
    if report.layout is None:
        return f"{name}: not found in {report.path}"
    return (
        f"{name}: {report.parameters:,} parameters in {', '.join(report.dtypes)},"
        f" layout: {report.layout.name} ({report.path.name})"
    )


def _describe_inversion(inversion: Inversion) -> str:
    made = inversion.made
    height, width = inversion.latents.shape[-2:]
    lines = [
        f"inversion made with {printable(inversion.model_name)}",
        f"prompt: {printable(inversion.prompt)}",
        f"method: {inversion.method}, guidance {inversion.guidance_scale:g},"
        f" {inversion.steps} steps",
        f"latent: {height} x {width}",
        f"embeddings: {tuple(inversion.uncond.shape)} {inversion.uncond.dtype}",
        f"inner iterations: {sum(inversion.iterations)}",
    ]
    for name, kept in (("prompt embeddings", inversion.cond), ("offsets", inversion.offsets)):
        if kept is not None:
            lines.append(f"{name}: {tuple(kept.shape)} {kept.dtype}")
    if inversion.weights is None or made is None:
        return "\n".join([*lines, "format 1: it does not say with which weights it was made"])
    lines.append(f"image: SHA-256 {made.image_sha256}" if made.image_sha256 else "no image")
    # Rules are tables of T numbers: their first is enough here.
    facts = {k: v[0] if isinstance(v, list) and v else v for k, v in made.settings.items()}
    for name, values in (("settings", facts), ("versions", made.versions)):
        words = ", ".join(f"{key} {value}" for key, value in values.items())
        lines.append(f"{name}: {printable(words)}")
    return "\n".join(lines)
