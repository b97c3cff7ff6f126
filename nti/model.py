"""The three networks, the tokenizer and the schedule as one object, and how it is loaded."""

import dataclasses
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from nti.config import SD_V1, ModelConfig
from nti.errors import check_finite
from nti.execution.choose import choose_backend, choose_execution
from nti.execution.eager import eager_steps
from nti.execution.steps import Steps
from nti.fingerprint import Fingerprint
from nti.networks.text_encoder import TextEncoder
from nti.networks.tokenizer import Tokenizer
from nti.networks.unet import UNet
from nti.networks.vae import VAE
from nti.sampling.schedule import Schedule, alpha_bars
from nti.weights_loader import (
    CheckpointError,
    Description,
    Layout,
    described,
    is_inpainting,
    network_files,
    read_header,
    read_metadata,
    read_networks,
    read_tensor,
    text_layouts,
    unet_layouts,
    vae_layouts,
)

__all__ = ["StableDiffusion", "load_model", "unknown_words"]

logger = logging.getLogger(__name__)

CONFIG_KEY = "nti_config"
"""The metadata key under which a checkpoint that is not SD v1 states its configuration."""

MEMORY = ("normal", "low")

BUFFER_TOLERANCE = 2e-3
"""Between alpha_bar of a file and of its schedule."""


class StableDiffusion:
    """A frozen Stable Diffusion v1 model of any width.

    The networks compute in a dtype of their own; latents, embeddings and noise go in and out in
    `state_dtype`, which is float64 for a float64 UNet and float32 for every other.
    """

    def __init__(
        self,
        config: ModelConfig,
        unet: UNet,
        vae: VAE,
        text: TextEncoder,
        tokenizer: Tokenizer,
        steps: Steps | None = None,
    ) -> None:
        """Put networks together, as they are: `load_model` freezes them and lays them out.

        `steps` runs the UNet; None: eagerly.
        """
        self.config, self.vae, self.text, self.tokenizer = config, vae, text, tokenizer
        self.steps = steps or eager_steps(unet)

    @property
    def unet(self) -> UNet:
        """The denoiser that the steps compute."""
        return self.steps.unet

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return self.unet.conv_in.weight.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """Of latents, embeddings and noise outside the networks."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """By which an inversion knows its model again."""
        schedule = dataclasses.asdict(self.config.schedule)
        unet = dataclasses.asdict(self.config.unet)
        if not unet["additional_channels"]:  # older inversions do not say so
            del unet["additional_channels"]
        numbers = {
            "unet": {**unet, "schedule": schedule},
            "text": dataclasses.asdict(self.config.text),
            "vae": dataclasses.asdict(self.config.vae),
        }
        return Fingerprint.of({"unet": self.unet, "text": self.text, "vae": self.vae}, numbers)

    def with_execution(self, execution: str, *, compiler: str = "inductor") -> "StableDiffusion":
        """Return the same model, on the same weights, whose steps run in another way.

        Args:
            execution: `eager`; `compiled`, by torch.compile: one graph for each step and shape, of
                which the first call takes minutes; `cuda-graph`: captured at the first call; or
                `auto`: `cuda-graph` on CUDA if it passes its self-check, else `eager`.
            compiler: of `compiled`: a backend of torch.compile.

        Raises:
            ValueError: an unknown execution, or one that cannot be had on this device.

        """
        steps = choose_execution(self.steps, execution, compiler=compiler)
        return StableDiffusion(self.config, self.unet, self.vae, self.text, self.tokenizer, steps)

    def check_takes_latents_alone(self, what: str) -> None:
        """Raise ValueError for a UNet that takes more than z_t, of which `what` knows nothing."""
        if self.config.unet.additional_channels:
            raise ValueError(
                f"model: got {self.config.name}, whose UNet takes"
                f" {self.config.unet.input_channels} channels, expected one that takes"
                f" {self.config.unet.latent_channels} to {what}: load the model that it was made"
                " from, or repaint part of the image with `nti.inpaint`"
            )

    def schedule(self, steps: int, *, eta: float = 0.0) -> Schedule:
        """Return `steps` timesteps of the schedule; ValueError for a number that does not fit."""
        return Schedule.create(self.config.schedule, steps, eta=eta)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """psi(P): prompts -> token states (B, 77, C) in `state_dtype`.

        Warns of a prompt that is cut at 75 tokens, of weights in other programs' syntax, and of
        words that a small model was not trained on. ValueError for what is no list of strings;
        NotFiniteError for states that overflow.
        """
        tokens = self.tokenizer(prompts).to(self.device)
        self._warn_of_unknown_words(prompts)
        for prompt in map(self.tokenizer.encode, dict.fromkeys(prompts)):
            for message in filter(None, (prompt.cut_message, prompt.weights_message)):
                warnings.warn(message, stacklevel=3)
        states: Tensor = self.text(tokens)
        check_finite(states, "text encoder", states.dtype)
        return states.to(self.state_dtype)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> z_0 (B, 4, H/8, W/8): the scaled mean, in `state_dtype`.

        One image after the other, so that a batch takes no more memory than an image. Raises
        ValueError for another shape, or for sides that the UNet cannot halve as often as it must;
        NotFiniteError for latents that overflow.
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
        dtype = self.vae.dtype
        latent = torch.cat([self.vae.encode(x[None].to(self.device, dtype)) for x in image])
        check_finite(latent, "encoder", dtype)
        return latent.to(self.state_dtype)

    @torch.no_grad()
    def decode_latent(self, latent: Tensor) -> Tensor:
        """z_0 (B, 4, h, w) -> image (B, 3, 8h, 8w), clamped to [-1, 1], in `state_dtype`.

        One latent after the other. NotFiniteError for latents or images that are not finite.
        """
        check_finite(latent, "latent to decode", self.dtype)
        dtype = self.vae.dtype
        image = torch.cat([self.vae.decode(z[None].to(self.device, dtype)) for z in latent])
        check_finite(image, "decoder", dtype)
        return image.to(self.state_dtype).clamp(-1.0, 1.0)

    def _warn_of_unknown_words(self, prompts: Sequence[str]) -> None:
        if message := unknown_words(self.config, prompts):
            warnings.warn(message, stacklevel=4)


def unknown_words(config: ModelConfig, prompts: Sequence[str]) -> str:
    """Say which words of prompts a small model was not trained on; empty where there are none."""
    known = config.vocabulary
    if known is None:
        return ""
    words = {w for prompt in prompts for w in re.findall(r"[^\W_]+", prompt.lower())}
    unknown = sorted(words - set(known))
    if not unknown:
        return ""
    return (
        f"{config.name} was never trained on {', '.join(map(repr, unknown))};"
        f" it knows: {', '.join(known)}"
    )


@torch.inference_mode(mode=False)  # what is made in that mode cannot be differentiated through
def load_model(
    checkpoint: str | Path | None = None,
    *,
    vae: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    memory: str = "normal",
    execution: str = "auto",
) -> StableDiffusion:
    """Load a model.

    Args:
        checkpoint: a `.safetensors` file in the original SD v1 layout, or a directory in diffusers'
            layout; the loader finds out which, and whether the model predicts v, or is one for
            inpainting (see `nti.inpaint`). None is the small embedded model.
        vae: a file or directory whose autoencoder replaces the checkpoint's.
        device: None: CUDA if there is any, else the CPU.
        dtype: what the UNet and the text encoder compute in; None: float16 on CUDA, float32
            elsewhere. The autoencoder runs once an image and overflows first, so where this is
            float16 it computes in float32.
        backend: who computes the UNet's layers: `reference` (PyTorch), `onednn` (float32 on a CPU),
            `triton` (CUDA), or `auto`: oneDNN for float32 on a CPU, Triton for half precision on
            CUDA if its kernels pass their self-check, else the reference.
        memory: `low` computes the UNet's blocks again in the backward pass instead of keeping what
            is inside them: for half precision at 512 pixels 61 MiB of activations instead of 444
            (`benchmarks/counts.py`), for 1.4 to 1.5 times the time of an iteration on a CPU
            (`benchmarks/results/step.csv`).
        execution: how the steps run; see `StableDiffusion.with_execution`.

    Returns:
        The model, frozen.

    Raises:
        CheckpointError: a file that is missing, is no safetensors file, is known to be something
        else (SD 2.x, SDXL, LoRA, pickle), does not hold exactly these networks, or is
        described by its metadata, its folders' JSON or a `.yaml` beside it as what cannot be built.
        ValueError: an unknown device, backend, `memory` or `execution`, or one that cannot be had.

    """
    if memory not in MEMORY:
        raise ValueError(f"memory: got {memory!r}, expected one of {', '.join(MEMORY)}")
    device = _device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    backend = choose_backend(backend, device, dtype)
    files, config = locate(checkpoint, vae)
    networks = skeletons(config, backend=backend, recompute=memory == "low")
    exact = torch.float32 if dtype == torch.float16 else dtype
    parameters = read_networks(
        files,
        layouts(config),
        {name: parameter_shapes(network) for name, network in networks.items()},
        dtypes={"unet": dtype, "vae": exact, "text": dtype},
        device=device,
        # Convolutions and norms read and write this layout without reordering (PyTorch's norms on
        # CUDA do not); tokens are views of it.
        channels_last=("unet",),
    )
    for name, network in networks.items():
        network.load_state_dict(parameters.pop(name), assign=True)
        network.requires_grad_(False).eval()
    unet, autoencoder, text = networks["unet"], networks["vae"], networks["text"]
    assert isinstance(unet, UNet) and isinstance(autoencoder, VAE) and isinstance(text, TextEncoder)
    text.restore_buffers(device)
    steps = choose_execution(eager_steps(unet), execution)
    logger.info(
        "%s on %s in %s, backend: %s, execution: %s",
        config.name, device, dtype, backend, steps.execution,
    )  # fmt: skip
    tokenizer = Tokenizer(config.text.context_length)
    return StableDiffusion(config, unet, autoencoder, text, tokenizer, steps)


def locate(
    checkpoint: str | Path | None, vae: str | Path | None = None
) -> tuple[dict[str, Path], ModelConfig]:
    """Return the file of each network (`unet`, `vae`, `text`) and the configuration they have.

    Raises CheckpointError for files that are missing, are known to be another model's, or are
    described as something that cannot be built.
    """
    path = Path(checkpoint) if checkpoint is not None else embedded_checkpoint()
    files = network_files(path, Path(vae) if vae is not None else None)
    metadata = read_metadata(files["unet"])
    config = SD_V1
    if CONFIG_KEY in metadata:
        what = f"{files['unet']}: metadata {CONFIG_KEY}"
        try:
            config = ModelConfig.from_json(metadata[CONFIG_KEY], what)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    elif is_inpainting({key: each.shape for key, each in read_header(files["unet"]).items()}):
        config = SD_V1.for_inpainting()
    config = _honoured(config, described(path, files, dataclasses.asdict(config)))
    _check_buffers(files["unet"], config)
    return files, config


def _honoured(config: ModelConfig, said: Description) -> ModelConfig:
    """Return the configuration with what is written beside the weights."""
    vae = config.vae if said.scale is None else dataclasses.replace(config.vae, scale=said.scale)
    try:
        schedule = dataclasses.replace(config.schedule, **said.schedule)
    except ValueError as error:
        raise CheckpointError(f"{said.sources}: {error}") from None
    return dataclasses.replace(config, vae=vae, schedule=schedule)


def _check_buffers(path: Path, config: ModelConfig) -> None:
    """Raise CheckpointError where the schedule that a file holds as a tensor is another one."""
    found = read_tensor(path, "alphas_cumprod")
    if found is None:
        return
    expected = alpha_bars(config.schedule)
    alike = found.shape == expected.shape and found.is_floating_point()
    # Half precision rounds by less than half of this; other schedules differ by ten times as much.
    if not alike or not (found.double() - expected).abs().max() <= BUFFER_TOLERANCE:
        raise CheckpointError(
            f"{path}: alphas_cumprod: got another schedule of the noise than {config.name}'s"
            f" ({config.schedule.beta_schedule}, beta {config.schedule.beta_start:g} to"
            f" {config.schedule.beta_end:g} in {config.schedule.train_steps} steps): choose another"
            " model, or describe the schedule in a .yaml beside it"
        )


def skeletons(
    config: ModelConfig, *, backend: str = "reference", recompute: bool = False
) -> dict[str, nn.Module]:
    """Return the three networks on the meta device: shapes without weights."""
    with torch.device("meta"):
        return {
            "unet": UNet(
                config.unet, schedule=config.schedule, backend=backend, recompute=recompute
            ),
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
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    try:
        chosen = torch.device(device or ("cuda" if count else "cpu"))
    except RuntimeError:
        chosen = torch.device("meta")
    name = chosen.type if chosen.type == "cpu" else str(chosen)
    if name not in there:
        raise ValueError(f"device: got {str(device)!r}, expected one of {', '.join(there)}")
    return chosen
