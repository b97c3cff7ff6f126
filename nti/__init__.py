"""Null-text inversion and Prompt-to-Prompt editing on Stable Diffusion v1.

    model = nti.load_model()
    inversion = nti.invert(model, "photo.png", "a cat sitting next to a mirror")
    result = nti.edit(model, inversion, "a tiger sitting next to a mirror")

Names are imported when they are first used, so that `import nti` itself is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nti.config import SD_V1 as SD_V1
    from nti.config import ModelConfig as ModelConfig
    from nti.datasets.cluster import Cluster as Cluster
    from nti.datasets.cluster import ModelRequest as ModelRequest
    from nti.datasets.manifest import read_manifest as read_manifest
    from nti.datasets.run import Here as Here
    from nti.datasets.run import run_manifest as run_manifest
    from nti.datasets.work import Keep as Keep
    from nti.editing.attention_maps import average_attention as average_attention
    from nti.editing.diffedit import diffedit as diffedit
    from nti.editing.editors import EDITORS as EDITORS
    from nti.editing.imagic import Imagic as Imagic
    from nti.editing.imagic import imagic as imagic
    from nti.editing.inpaint import inpaint as inpaint
    from nti.editing.masactrl import masactrl as masactrl
    from nti.editing.masked import masked as masked
    from nti.editing.plan import EditPlan as EditPlan
    from nti.editing.prompt_to_prompt import edit as edit
    from nti.editing.prompt_to_prompt import edit_latents as edit_latents
    from nti.editing.proximal import Proximal as Proximal
    from nti.editing.result import EditedLatents as EditedLatents
    from nti.editing.result import EditResult as EditResult
    from nti.editing.sdedit import sdedit as sdedit
    from nti.editing.sweep import sweep as sweep
    from nti.editing.unitune import UniTune as UniTune
    from nti.editing.unitune import unitune as unitune
    from nti.errors import BatchError as BatchError
    from nti.errors import NotFiniteError as NotFiniteError
    from nti.errors import Stopped as Stopped
    from nti.evaluation.captions import captioner_of as captioner_of
    from nti.evaluation.clip import load_clip as load_clip
    from nti.evaluation.metrics import Metrics as Metrics
    from nti.image import Placement as Placement
    from nti.image import load_image as load_image
    from nti.image import open_image as open_image
    from nti.image import paste_back as paste_back
    from nti.image import to_pil as to_pil
    from nti.inversion.ddim import ddim_invert as ddim_invert
    from nti.inversion.generate import generate as generate
    from nti.inversion.inversion import Inversion as Inversion
    from nti.inversion.inversion import InversionFileError as InversionFileError
    from nti.inversion.invert import invert as invert
    from nti.inversion.invert import invert_batch as invert_batch
    from nti.inversion.invert_latent import InvertedLatents as InvertedLatents
    from nti.inversion.invert_latent import invert_latent as invert_latent
    from nti.inversion.methods import METHODS as METHODS
    from nti.inversion.null_text import NullTextResult as NullTextResult
    from nti.inversion.null_text import optimize_null_text as optimize_null_text
    from nti.inversion.provenance import Provenance as Provenance
    from nti.inversion.published import from_published as from_published
    from nti.inversion.published import to_published as to_published
    from nti.inversion.sampling import reconstruct as reconstruct
    from nti.inversion.sampling import reconstruct_latents as reconstruct_latents
    from nti.inversion.sampling import sample as sample
    from nti.inversion.settings import InversionSettings as InversionSettings
    from nti.inversion.state import InversionState as InversionState
    from nti.inversion.state import StateFile as StateFile
    from nti.inversion.state import StateFileError as StateFileError
    from nti.model import StableDiffusion as StableDiffusion
    from nti.model import load_model as load_model
    from nti.report.page import make_report as make_report
    from nti.weights_loader import CheckpointError as CheckpointError

__version__ = "0.1.0"

_HOMES = {
    "nti.config": ("SD_V1", "ModelConfig"),
    "nti.datasets.cluster": ("Cluster", "ModelRequest"),
    "nti.datasets.manifest": ("read_manifest",),
    "nti.datasets.run": ("Here", "run_manifest"),
    "nti.datasets.work": ("Keep",),
    "nti.evaluation.captions": ("captioner_of",),
    "nti.evaluation.clip": ("load_clip",),
    "nti.evaluation.metrics": ("Metrics",),
    "nti.editing.attention_maps": ("average_attention",),
    "nti.editing.diffedit": ("diffedit",),
    "nti.editing.editors": ("EDITORS",),
    "nti.editing.imagic": ("Imagic", "imagic"),
    "nti.editing.inpaint": ("inpaint",),
    "nti.editing.masactrl": ("masactrl",),
    "nti.editing.masked": ("masked",),
    "nti.editing.plan": ("EditPlan",),
    "nti.editing.prompt_to_prompt": ("edit", "edit_latents"),
    "nti.editing.proximal": ("Proximal",),
    "nti.editing.result": ("EditResult", "EditedLatents"),
    "nti.editing.sdedit": ("sdedit",),
    "nti.editing.sweep": ("sweep",),
    "nti.editing.unitune": ("UniTune", "unitune"),
    "nti.errors": ("BatchError", "NotFiniteError", "Stopped"),
    "nti.image": ("Placement", "load_image", "open_image", "paste_back", "to_pil"),
    "nti.inversion.ddim": ("ddim_invert",),
    "nti.inversion.generate": ("generate",),
    "nti.inversion.inversion": ("Inversion", "InversionFileError"),
    "nti.inversion.invert": ("invert", "invert_batch"),
    "nti.inversion.invert_latent": ("InvertedLatents", "invert_latent"),
    "nti.inversion.methods": ("METHODS",),
    "nti.inversion.null_text": ("NullTextResult", "optimize_null_text"),
    "nti.inversion.provenance": ("Provenance",),
    "nti.inversion.published": ("from_published", "to_published"),
    "nti.inversion.sampling": ("reconstruct", "reconstruct_latents", "sample"),
    "nti.inversion.settings": ("InversionSettings",),
    "nti.inversion.state": ("InversionState", "StateFile", "StateFileError"),
    "nti.model": ("StableDiffusion", "load_model"),
    "nti.report.page": ("make_report",),
    "nti.weights_loader": ("CheckpointError",),
}  # fmt: skip
"""Each public name by its module."""

_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'nti' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])
