"""Is this file one that people mistake for a Stable Diffusion v1 checkpoint? Say which, from the
names and shapes of its tensors.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["PICKLE_SUFFIXES", "is_inpainting", "pickle_message", "what_else"]

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

Shapes = Mapping[str, tuple[int, ...]]

WANTED = "expected Stable Diffusion v1 (1.1 to 1.5 or a fine-tune of one)"

UNET_IN = ("model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight")
CROSS_KEY = (
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
INPAINTING_INPUTS = 9
"""Input channels of Stable Diffusion's inpainting UNet: 4 of z_t, 1 mask, 4 of a masked image."""

OTHER_INPUTS = {
    8: "an InstructPix2Pix UNet, which takes a second image as well",
    5: "a depth-conditioned UNet",
}


def what_else(shapes: Shapes) -> str | None:
    """Name what a file with these tensors is, if it is known and no SD v1; else None.

    Args:
        shapes: of every tensor, by its key.

    """
    found = _of_another_kind(shapes) or _of_another_architecture(shapes)
    return None if found is None else f"got {found}, {WANTED}"


def is_inpainting(shapes: Shapes) -> bool:
    """Whether the UNet of a file with tensors of these shapes takes a mask and a masked image."""
    return _dimension(shapes, UNET_IN, 1) == INPAINTING_INPUTS


def pickle_message(paths: Sequence[Path], target: str) -> str:
    """Say why pickles are not read, and how to convert them where that is safe.

    Args:
        paths: one network's or checkpoint's, in one folder.
        target: the name in that folder under which the loader looks for what they hold.

    """
    code = (
        "import torch; from safetensors.torch import save_file;"
        " load = lambda f: torch.load(f, map_location='cpu', weights_only=True);"
        f" parts = [load(f) for f in {[path.name for path in paths]}];"
        " save_file({k: v.contiguous().clone() for p in parts"
        f" for k, v in p.get('state_dict', p).items() if torch.is_tensor(v)}}, {target!r})"
    )
    # Double quotes are right for every shell, but not around every name.
    quoted = shlex.quote(code) if re.search(r'["$`\\!%]', code) else f'"{code}"'
    return (
        f"{paths[0]}: got a pickle, which is never unpickled here because loading one can run any"
        f" code in it; expected .safetensors: in its folder, convert it by python -c {quoted}"
    )


def _of_another_kind(shapes: Shapes) -> str | None:
    """A file that holds no whole model of images."""
    if any(".lora_" in k or k.startswith("lora_") for k in shapes):
        return "a LoRA, which is a change to a checkpoint: merge it into one first"
    if any(k.startswith(("control_model.", "controlnet_cond_embedding.")) for k in shapes):
        return "a ControlNet"
    if "emb_params" in shapes or any(k.startswith("string_to_param") for k in shapes):
        return "a textual-inversion embedding"
    if {"uncond", "pivot", "latents"} <= shapes.keys():
        return "a saved inversion"
    return None


def _of_another_architecture(shapes: Shapes) -> str | None:
    """A diffusion model, but another one."""
    if any(
        ".joint_blocks." in k
        or ".double_blocks." in k
        or k.startswith("double_blocks.")
        or k.startswith("transformer_blocks.0.attn.add_")
        for k in shapes
    ):
        return "a diffusion transformer (Stable Diffusion 3, Flux or the like)"
    if any(k.startswith(("conditioner.", "add_embedding.")) or ".label_emb." in k for k in shapes):
        return "Stable Diffusion XL"
    context = _dimension(shapes, CROSS_KEY, 1)
    if context == 1024 or any(k.startswith("cond_stage_model.model.") for k in shapes):
        return "Stable Diffusion 2.x (text features of width 1024)"
    channels = _dimension(shapes, UNET_IN, 1)
    if channels in OTHER_INPUTS:
        return f"{OTHER_INPUTS[channels]} ({channels} input channels instead of 4)"
    if "ztsnr" in shapes:
        return "a model of zero terminal signal-to-noise ratio (key 'ztsnr'), another schedule"
    return None


def _dimension(shapes: Shapes, keys: tuple[str, ...], dimension: int) -> int | None:
    for key in keys:
        if len(shapes.get(key, ())) > dimension:
            return shapes[key][dimension]
    return None
