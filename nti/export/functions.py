"""The functions that are exported: what a runtime calls, of tensors alone.

Each is a module whose parameters are the model's. A runtime composes them as `nti.inversion` and
`nti.editing` do; docs/embedding.md says how.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nti.editing.local_blend import THRESHOLD, changing_region
from nti.model import StableDiffusion
from nti.networks.control import AttentionControl, Fold
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import (
    AdamState,
    IterationInputs,
    controlled_noise,
    guided_step,
    noise,
    null_text_iteration,
)

__all__ = ["FUNCTIONS", "Function", "functions_of"]

FUNCTIONS = ("text", "encode", "decode", "noise", "guided", "controlled", "blend", "iteration")

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Function:
    """One function, and inputs of the shapes that it is exported for."""

    name: str
    module: nn.Module
    """Takes the inputs in their order, and gives a tuple of the outputs."""
    inputs: dict[str, Tensor]
    """Random ones, by name: all contiguous."""
    outputs: tuple[str, ...]
    """Their names, none of which an input has."""


class _Part(nn.Module):
    """A function of one network, under the name that its weights have in the file."""

    def __init__(self, name: str, network: nn.Module, call: Callable[..., Outputs]) -> None:
        super().__init__()
        self.add_module(name, network)
        self.call = call

    def forward(self, *inputs: Tensor) -> Outputs:
        """Call, and return what every reader may take as it lies: contiguous tensors."""
        return tuple(x.contiguous() for x in self.call(*(x.contiguous() for x in inputs)))


def functions_of(
    model: StableDiffusion,
    size: tuple[int, int],
    batch: int,
    edits: int,
    *,
    backend: str = "reference",
    seed: int = 0,
) -> list[Function]:
    """Return all functions of a model.

    Args:
        model: whose weights they use.
        size: (width, height) of the image in pixels.
        batch: B images at once of `noise`, `guided` and `iteration`.
        edits: E edits at once of `blend` and `controlled`, whose batch has 2 E + 1 rows: the edits'
            unconditional rows, the source's conditional one, the edits'.
        backend: of the UNet's layers: `reference`, whose operations every format has, or
            `onednn-products`, whose products libtorch has on a CPU.
        seed: of the inputs: other ones tell whether any was taken for a constant.

    """
    unet, vae, text = model.unet.with_backend(backend), model.vae, model.text
    make = _Inputs(model, size, seed)

    def encode(image: Tensor) -> Outputs:
        return (vae.encode(image.to(vae.dtype)).to(image.dtype),)

    def decode(latent: Tensor) -> Outputs:
        return (vae.decode(latent.to(vae.dtype)).to(latent.dtype).clamp(-1.0, 1.0),)

    def states(tokens: Tensor) -> Outputs:
        return (text(tokens).to(model.state_dtype),)

    def eps(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return noise(unet, latent, timestep, context)

    def guided(
        latent: Tensor, timestep: Tensor, uncond: Tensor, cond: Tensor, of_latent: Tensor,
        of_eps: Tensor, guidance_scale: Tensor,
    ) -> Outputs:  # fmt: skip
        step = StepCoefficients(of_latent, of_eps)
        return (guided_step(eps, latent, timestep, uncond, cond, step, guidance_scale),)

    def controlled(
        latent: Tensor, timestep: Tensor, context: Tensor, source_mix: Tensor, own_mix: Tensor,
        source_rows: Tensor, self_rows: Tensor, words: Tensor,
    ) -> Outputs:  # fmt: skip
        control = AttentionControl(Fold(source_rows, source_mix, own_mix), self_rows, words)
        predicted, maps = controlled_noise(unet, latent, timestep, context, control)
        assert maps is not None
        return predicted, maps.to(latent.dtype)

    def blend(
        latent: Tensor, source: Tensor, maps: Tensor, blends: Tensor, subtracts: Tensor,
        threshold: Tensor,
    ) -> Outputs:  # fmt: skip
        h, w = latent.shape[2:]
        region = changing_region(maps, (h, w), blends.bool(), subtracts.bool(), threshold)
        return (torch.where(region[:, None], latent, source),)

    def iteration(
        uncond: Tensor, mean: Tensor, square: Tensor, count: Tensor, active: Tensor,
        latent: Tensor, timestep: Tensor, eps_cond: Tensor, target: Tensor, of_latent: Tensor,
        of_eps: Tensor, guidance_scale: Tensor, learning_rate: Tensor,
    ) -> Outputs:  # fmt: skip
        made = null_text_iteration(
            eps,
            IterationInputs(
                uncond, AdamState(mean, square, count), active, latent, timestep, eps_cond, target,
                StepCoefficients(of_latent, of_eps), guidance_scale, learning_rate,
            ),
        )  # fmt: skip
        adam = made.adam
        return made.uncond, adam.mean, adam.square, adam.count, made.losses, made.reached

    rows = 2 * edits + 1
    timestep = {"timestep": make.timestep()}
    step = {"of_latent": make.number(1.02), "of_eps": make.number(-0.05)}
    w = {"guidance_scale": make.number(model.config.guidance_scale)}
    return [
        Function("text", _Part("text", text, states), {"tokens": make.tokens()}, ("states",)),
        Function("encode", _Part("vae", vae, encode), {"image": make.image()}, ("latent",)),
        Function("decode", _Part("vae", vae, decode), {"latent": make.latent(1)}, ("image",)),
        Function(
            "noise",
            _Part("unet", unet, lambda *inputs: (eps(*inputs),)),
            {"latent": make.latent(batch), **timestep, "context": make.context(batch)},
            ("eps",),
        ),
        Function(
            "guided",
            _Part("unet", unet, guided),
            {
                "latent": make.latent(batch),
                **timestep,
                "uncond": make.context(batch),
                "cond": make.context(batch),
                **step,
                **w,
            },
            ("next_latent",),
        ),
        Function(
            "controlled",
            _Part("unet", unet, controlled),
            {
                "latent": make.latent(rows),
                **timestep,
                "context": make.context(rows),
                **make.control(edits),
            },
            ("eps", "maps"),
        ),
        Function(
            "blend",
            _Part("blend", nn.Identity(), blend),
            {"latent": make.latent(edits), "source": make.latent(1), **make.blend(edits)},
            ("blended",),
        ),
        Function(
            "iteration",
            _Part("unet", unet, iteration),
            {
                "uncond": make.context(batch),
                "mean": 1e-9 * make.context(batch),
                "square": 1e-16 * make.context(batch).square(),
                "count": make.number(2.0).expand(batch).contiguous(),
                "active": make.active(batch),
                "latent": make.latent(batch),
                **timestep,
                "eps_cond": make.latent(batch),
                "target": make.latent(batch),
                **step,
                **w,
                "learning_rate": make.number(0.01),
            },
            ("new_uncond", "new_mean", "new_square", "new_count", "losses", "reached"),
        ),
    ]  # fmt: skip


class _Inputs:
    """Random inputs of a model's shapes, where it is."""

    def __init__(self, model: StableDiffusion, size: tuple[int, int], seed: int) -> None:
        config = model.config
        self.width, self.height = size
        self.side = config.vae.downsampling
        self.channels = config.unet.latent_channels
        self.tokens_each, self.context_width = config.text.context_length, config.text.width
        self.vocabulary = config.text.vocab_size
        self.train_steps = config.schedule.train_steps
        self.map_scale = 2**config.unet.word_map_level
        self.device, self.dtype = model.device, model.state_dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device, self.dtype)

    def number(self, value: float) -> Tensor:
        scaled = value * (1 + 0.01 * self.seed)
        return torch.full((), scaled, device=self.device, dtype=self.dtype)

    def timestep(self) -> Tensor:
        t = (self.train_steps // 2 + 7 * self.seed) % self.train_steps
        return torch.full((), t, dtype=torch.int64, device=self.device)

    def active(self, rows: int) -> Tensor:
        """Return all True for the seed 0; for others not the first."""
        return torch.arange(rows, device=self.device) >= min(self.seed, 1)

    def tokens(self) -> Tensor:
        shape = (1, self.tokens_each)
        return torch.randint(self.vocabulary, shape, generator=self.generator).to(self.device)

    def image(self) -> Tensor:
        return self._normal(1, 3, self.height, self.width).tanh()

    def latent(self, rows: int) -> Tensor:
        return self._normal(rows, self.channels, self.height // self.side, self.width // self.side)

    def context(self, rows: int) -> Tensor:
        return self._normal(rows, self.tokens_each, self.context_width)

    def control(self, edits: int) -> dict[str, Tensor]:
        """Return what `AttentionControl` holds, the second half of the self-attention injected."""
        tokens, rows = self.tokens_each, 2 * edits + 1
        source = torch.full((edits,), edits, dtype=torch.int64, device=self.device)
        self_rows = torch.arange(rows, device=self.device)
        self_rows[edits:] = edits
        return {
            "source_mix": self._normal(edits, tokens, tokens),
            "own_mix": self._normal(edits, tokens),
            "source_rows": source,
            "self_rows": self_rows,
            "words": (self._normal(1 + edits, tokens, 2 * edits) > 1).to(self.dtype),
        }

    def blend(self, edits: int) -> dict[str, Tensor]:
        """Return what `changing_region` takes: maps, and edits that blend and subtract in turns.

        For the seed 0 all do both.
        """
        side = self.side * self.map_scale
        turn = (torch.arange(edits, device=self.device) + self.seed) % 2
        every = self.seed == 0
        return {
            "maps": self._normal(1 + edits, 2 * edits, self.height // side, self.width // side),
            "blends": ((turn == 0) | every).byte(),
            "subtracts": ((turn == 1) | every).byte(),
            "threshold": self.number(THRESHOLD),
        }
