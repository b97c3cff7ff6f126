"""Null-text inversion and Prompt-to-Prompt editing on Stable Diffusion v1.

    model = nti.load_model()
    inversion = nti.invert(model, "photo.png", "a cat sitting next to a mirror")
    result = nti.edit(model, inversion, "a tiger sitting next to a mirror")

Names are imported when they are first used, so that `import nti` itself is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nti.compilation import compile_model as compile_model
    from nti.config import SD_V1 as SD_V1
    from nti.config import ModelConfig as ModelConfig
    from nti.editing.prompt_to_prompt import EditResult as EditResult
    from nti.editing.prompt_to_prompt import edit as edit
    from nti.image import Placement as Placement
    from nti.image import paste_back as paste_back
    from nti.inversion.invert import invert as invert
    from nti.inversion.record import Inversion as Inversion
    from nti.inversion.sampling import reconstruct as reconstruct
    from nti.model import StableDiffusion as StableDiffusion
    from nti.model import load_model as load_model

__version__ = "0.1.0"

_HOMES = {
    "EditResult": "nti.editing.prompt_to_prompt",
    "Inversion": "nti.inversion.record",
    "ModelConfig": "nti.config",
    "Placement": "nti.image",
    "SD_V1": "nti.config",
    "StableDiffusion": "nti.model",
    "compile_model": "nti.compilation",
    "edit": "nti.editing.prompt_to_prompt",
    "invert": "nti.inversion.invert",
    "load_model": "nti.model",
    "paste_back": "nti.image",
    "reconstruct": "nti.inversion.sampling",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nti' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
