"""The three networks, the tokenizer and the schedule as one object, and how it is loaded."""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from nti.config import SD_V1, ModelConfig
from nti.kernels.backend import resolve_backend
from nti.networks.attention import set_backend
from nti.networks.control import AttentionCapture, AttentionControl
from nti.networks.text_encoder import TextEncoder
from nti.networks.tokenizer import Tokenizer
from nti.networks.unet import Begun, UNet
from nti.networks.vae import VAE
from nti.sampling.schedule import Schedule, StepCoefficients
from nti.sampling.step import AdamState, guided_step, null_text_iteration
from nti.weights_loader import (
    Layout,
    network_files,
    read_metadata,
    read_networks,
    text_layouts,
    unet_layouts,
    vae_layouts,
)

__all__ = ["StableDiffusion", "load_model"]

logger = logging.getLogger(__name__)

CONFIG_KEY = "nti_config"
"""The metadata key under which a checkpoint that is not SD v1 states its configuration."""

Network = TypeVar("Network", bound=nn.Module)

MEMORY = ("normal", "low")


class StableDiffusion:
    """A frozen Stable Diffusion v1 model of any width.

    The networks compute in `dtype`; latents, embeddings and noise go in and out in `state_dtype`,
    which is float64 for a float64 model and float32 for every other.
    """

    cuda_graph = True
    """Whether `nti.invert` records steps of this model on CUDA; see `load_model`."""

    def __init__(
        self, config: ModelConfig, unet: UNet, vae: VAE, text: TextEncoder, tokenizer: Tokenizer
    ) -> None:
        self.config = config
        # Convolutions and norms read and write this layout without reordering (PyTorch's norms on
        # CUDA do not); tokens are views of it.
        self.unet = _freeze(unet).to(memory_format=torch.channels_last)
        self.vae = _freeze(vae)
        self.text = _freeze(text)
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return self.unet.conv_in.weight.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """Of latents, embeddings and noise outside the networks."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def schedule(self, steps: int) -> Schedule:
        """Return `steps` timesteps of the schedule; ValueError for a number that does not fit."""
        return Schedule.create(self.config.schedule, steps)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """psi(P): prompts -> token states (B, 77, C) in `state_dtype`.

        Warns of a prompt that is cut at 75 tokens, and of words that a small model was not trained
        on.
        """
        self._warn_of_unknown_words(prompts)
        tokens = self.tokenizer(prompts).to(self.device)
        states: Tensor = self.text(tokens)
        return states.to(self.state_dtype)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> z_0 (B, 4, H/8, W/8): the scaled mean, in `state_dtype`.

        Raises ValueError for another shape, or for sides that the UNet cannot halve as often as it
        must.
        """
        multiple = self.config.granularity
        if (
            image.ndim != 4
            or image.shape[1] != 3
            or image.shape[2] % multiple
            or image.shape[3] % multiple
        ):
            raise ValueError(
                f"image: got {tuple(image.shape)}, expected (B, 3, H, W) with H and W"
                f" multiples of {multiple}: resize or crop it"
            )
        latent: Tensor = self.vae.encode(image.to(self.device, self.dtype))
        return latent.to(self.state_dtype)

    @torch.no_grad()
    def decode_latent(self, latent: Tensor) -> Tensor:
        """z_0 (B, 4, h, w) -> image (B, 3, 8h, 8w), clamped to [-1, 1], in `state_dtype`."""
        image: Tensor = self.vae.decode(latent.to(self.device, self.dtype))
        return image.to(self.state_dtype).clamp(-1.0, 1.0)

    def predict_noise(self, latent: Tensor, timestep: int | Tensor, context: Tensor) -> Tensor:
        """eps_theta(z_t, t, C).

        Args:
            latent: z_t (B, 4, h, w).
            timestep: t, one for all or (B,).
            context: token states (B, 77, C).

        Returns:
            (B, 4, h, w) in the latent's dtype. Differentiable in the latent and the context.

        """
        return self.finish(self.begin(latent, timestep), context).to(latent.dtype)

    def predict_noise_controlled(
        self,
        latent: Tensor,
        timestep: int | Tensor,
        context: Tensor,
        control: AttentionControl | None,
        capture: AttentionCapture | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Like `predict_noise` under control; also returns the word maps (R, W, h', w')."""
        t = torch.as_tensor(timestep, device=latent.device).expand(latent.shape[0])
        eps, maps = self.unet(latent.to(self.dtype), t, context.to(self.dtype), control, capture)
        return eps.to(latent.dtype), maps

    def guided_step(
        self,
        latent: Tensor,
        timestep: int | Tensor,
        uncond: Tensor,
        cond: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: float | Tensor,
    ) -> Tensor:
        """z_t -> z_{t-1}: see `nti.sampling.step.guided_step`."""
        return guided_step(
            lambda z, c: self.predict_noise(z, timestep, c),
            latent, uncond, cond, coefficients, guidance_scale,
        )  # fmt: skip

    def null_text_iteration(
        self,
        begun: Begun,
        uncond: Tensor,
        adam: AdamState,
        latent: Tensor,
        eps_cond: Tensor,
        target: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: float | Tensor,
        learning_rate: float | Tensor,
        active: Tensor,
    ) -> tuple[Tensor, AdamState, Tensor]:
        """One inner iteration on a latent begun: see `nti.sampling.step.null_text_iteration`."""
        return null_text_iteration(
            partial(self.finish, begun),
            uncond, adam, latent, eps_cond, target, coefficients, guidance_scale, learning_rate,
            active,
        )  # fmt: skip

    def begin(self, latent: Tensor, timestep: int | Tensor) -> Begun:
        """Do what of eps_theta(z_t, t, C) does not depend on C, for `finish`."""
        t = torch.as_tensor(timestep, device=latent.device).expand(latent.shape[0])
        return self.unet.begin(latent.to(self.dtype), t)

    def finish(self, begun: Begun, context: Tensor) -> Tensor:
        """eps_theta(z_t, t, C) (B, 4, h, w) in the dtype of C (B, 77, C), of a latent begun."""
        return self.unet.finish(begun, context.to(self.dtype))[0].to(context.dtype)

    def _warn_of_unknown_words(self, prompts: Sequence[str]) -> None:
        known = self.config.vocabulary
        if known is None:
            return
        words = {w for prompt in prompts for w in re.findall(r"[^\W_]+", prompt.lower())}
        if unknown := sorted(words - set(known)):
            warnings.warn(
                f"{self.config.name} was never trained on {', '.join(map(repr, unknown))};"
                f" it knows: {', '.join(known)}",
                stacklevel=4,
            )


def _freeze(network: Network) -> Network:
    return network.requires_grad_(False).eval()


@torch.inference_mode(mode=False)  # what is made in that mode cannot be differentiated through
def load_model(
    checkpoint: str | Path | None = None,
    *,
    vae: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    memory: str = "normal",
    cuda_graph: bool = True,
) -> StableDiffusion:
    """Load a model.

    Args:
        checkpoint: a `.safetensors` file in the original SD v1 layout, or a directory in diffusers'
            layout; which, is found out. None is the small embedded model.
        vae: a file or directory whose autoencoder replaces the checkpoint's.
        device: None: CUDA if there is any, else the CPU.
        dtype: what the networks compute in; None: float16 on CUDA, float32 elsewhere.
        backend: who computes the UNet's attention, norms and gates: `reference` (PyTorch), `triton`
            (attention alone in steps that torch.compile compiles), or `auto`: Triton for half
            precision on CUDA, else the reference.
        memory: `low` computes the UNet's blocks again in the backward pass instead of keeping what
            is inside them: at 512 pixels in float32 on a CPU 4.3 GiB at the peak instead of 4.6,
            for a quarter more time (`benchmarks/results/step.csv`).
        cuda_graph: on CUDA, `nti.invert` records the noise and the inner iteration as CUDA graphs,
            so that they have no launch overhead, anew for every call; `nti.compile_model(model,
            backend="cuda-graph")` records all steps, once. False leaves them eager.

    Returns:
        The model, frozen.

    Raises:
        CheckpointError: a file that is missing, is no safetensors file, is known to be something
        else (SD 2.x, SDXL, inpainting, LoRA, pickle), or does not hold exactly these networks.
        ValueError: an unknown device, backend or `memory`, or `triton` where it cannot run.

    """
    if memory not in MEMORY:
        raise ValueError(f"memory: got {memory!r}, expected one of {', '.join(MEMORY)}")
    device = _device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    backend = resolve_backend(backend, device, dtype)
    files, config = locate(checkpoint, vae)
    logger.info("%s on %s in %s, backend: %s", config.name, device, dtype, backend)
    networks = skeletons(config)
    parameters = read_networks(
        files,
        layouts(config),
        {name: parameter_shapes(network) for name, network in networks.items()},
        dtypes=dict.fromkeys(files, dtype),
        device=device,
        channels_last=("unet",),
    )
    for name, network in networks.items():
        network.load_state_dict(parameters.pop(name), assign=True)
    unet, autoencoder, text = networks["unet"], networks["vae"], networks["text"]
    assert isinstance(unet, UNet) and isinstance(autoencoder, VAE) and isinstance(text, TextEncoder)
    text.restore_buffers(device)
    unet.recompute = memory == "low"
    set_backend(unet, backend)
    tokenizer = Tokenizer(config.text.context_length)
    model = StableDiffusion(config, unet, autoencoder, text, tokenizer)
    model.cuda_graph = cuda_graph
    return model


def locate(
    checkpoint: str | Path | None, vae: str | Path | None = None
) -> tuple[dict[str, Path], ModelConfig]:
    """Return the file of each network (`unet`, `vae`, `text`) and the configuration they have."""
    path = Path(checkpoint) if checkpoint is not None else embedded_checkpoint()
    files = network_files(path, Path(vae) if vae is not None else None)
    metadata = read_metadata(files["unet"])
    config = ModelConfig.from_json(metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else SD_V1
    return files, config


def skeletons(config: ModelConfig) -> dict[str, nn.Module]:
    """Return the three networks on the meta device: shapes without weights."""
    with torch.device("meta"):
        return {
            "unet": UNet(config.unet),
            "vae": VAE(config.vae),
            "text": TextEncoder(config.text),
        }


def layouts(config: ModelConfig) -> dict[str, tuple[Layout, ...]]:
    """Return each network's key layouts at this configuration's depth, the original one first."""
    unet, vae = config.unet, config.vae
    return {
        "unet": unet_layouts(unet.channel_multipliers, unet.res_blocks, unet.attention_levels),
        "vae": vae_layouts(vae.channel_multipliers, vae.res_blocks),
        "text": text_layouts(config.text.layers),
    }


def parameter_shapes(network: nn.Module) -> Mapping[str, torch.Size]:
    """Return the shape of each parameter by its name."""
    return {name: value.shape for name, value in network.state_dict().items()}


def embedded_checkpoint() -> Path:
    """Where the small model that comes with the package is."""
    return Path(str(resources.files("nti.weights_loader") / "shapes.safetensors"))


def _device(device: str | torch.device | None) -> torch.device:
    """Choose CUDA if there is any where nothing is asked for; ValueError for what there is not."""
    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        chosen = torch.device(device or available[-1])
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in available:
        raise ValueError(f"device: got {str(device)!r}, expected one of {', '.join(available)}")
    return chosen
