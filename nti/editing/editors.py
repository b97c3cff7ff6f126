"""The editors: one row each, of what it is called, where it is from, and what it takes.

An editor is a function of (model, inversion, prompts), its settings and a callback, in a file of
its own. To add one is to add that file and a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nti.editing.result import EditResult

__all__ = ["EDITORS", "Editor"]


@dataclass(frozen=True)
class Editor:
    """How an inverted image is edited."""

    name: str
    paper: str
    """Where it is from, by its arXiv number."""
    summary: str
    home: str
    """The module and the name of its function, which is imported when it is used."""
    takes: tuple[str, ...]
    """The settings of its function, all but the callback."""
    trajectory: bool = True
    """Whether it needs an inversion that has latents between z_T and z_0."""
    needs: tuple[str, ...] = ()
    """Those settings that have no default."""

    @property
    def function(self) -> "Callable[..., EditResult]":
        """What edits: (model, inversion, prompts, *, settings, callback) -> the result."""
        module, _, name = self.home.partition(":")
        found: Callable[..., EditResult] = getattr(import_module(module), name)
        return found


GUIDANCE = ("guidance_scale", "negative_prompt", "mix")
"""Settings of every editor that samples with guidance."""

_ROWS = (
    Editor(
        "p2p", "2208.01626",
        "Prompt-to-Prompt: the words that stay keep the source's attention",
        home="nti.editing.prompt_to_prompt:edit",
        takes=(
            "mode", "cross_replace", "self_replace", "blend", "subtract", "reweight",
            "blend_start", "blend_threshold", "replay", "start", "proximal", *GUIDANCE,
        ),
    ),
    Editor(
        "sdedit", "2108.01073",
        "the image is noised part of the way, and sampled from there",
        home="nti.editing.sdedit:sdedit",
        takes=("strength", "seed", *GUIDANCE), trajectory=False,
    ),
    Editor(
        "masked", "2206.02779",
        "blended latent diffusion: sdedit inside a mask, the picture itself outside",
        home="nti.editing.masked:masked",
        takes=("mask", "mask_threshold", "strength", "seed", "original", *GUIDANCE),
        trajectory=False, needs=("mask",),
    ),
    Editor(
        "diffedit", "2210.11427",
        "the mask is where the edited prompt predicts other noise than the source's",
        home="nti.editing.diffedit:diffedit",
        takes=(
            "strength", "seed", "noises", "mask_threshold", "mask_rule", "proximal", *GUIDANCE,
        ),
    ),
    Editor(
        "masactrl", "2304.08465",
        "self-attention looks at the source, so that poses may change",
        home="nti.editing.masactrl:masactrl",
        takes=("steps_from", "layers_from", "proximal", *GUIDANCE),
    ),
    Editor(
        "imagic", "2210.09276",
        "a copy of the UNet learns the image; the edit lies between its embedding and the prompt's",
        home="nti.editing.imagic:imagic",
        takes=(
            "eta", "embedding_steps", "embedding_learning_rate", "model_steps",
            "model_learning_rate", "seed", "guidance_scale",
        ),
        trajectory=False,
    ),
    Editor(
        "unitune", "2210.09477",
        "a copy of the UNet learns the image by a rare word, which then stands before the prompt",
        home="nti.editing.unitune:unitune",
        takes=(
            "rare", "iterations", "learning_rate", "batch", "strength", "seed", "guidance_scale",
        ),
        trajectory=False,
    ),
)  # fmt: skip

EDITORS: dict[str, Editor] = {row.name: row for row in _ROWS}
"""All of them, by name."""
