"""DiffEdit: the mask is where two prompts predict different noise (Couairon et al. 2022, arXiv
2210.11427).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nti.arguments import a_callable, a_choice, a_number, a_whole_number, texts
from nti.editing.edit_rows import EditRows
from nti.editing.proximal import Proximal
from nti.editing.result import EditedLatents, EditResult, decoded
from nti.errors import Callback, check_finite, part_of, report
from nti.inversion.inversion import Inversion
from nti.inversion.noised import draw
from nti.model import StableDiffusion
from nti.networks.tokenizer import clean
from nti.sampling.schedule import noised

__all__ = ["diffedit"]

RULES = ("paper", "diffusers")

OUTLIER = 3.0
"""Differences above so many times their mean are outliers: diffusers' number, as the paper gives
none."""

NOISE_SHARE = 0.5
"""Of the steps: how much noise the image has where the prompts are compared."""


@torch.no_grad()
def diffedit(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    strength: float = 0.8,
    seed: int = 0,
    noises: int = 10,
    mask_threshold: float = 0.5,
    mask_rule: str = "paper",
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    mix: float | None = None,
    proximal: Proximal | None = None,
    callback: Callback | None = None,
) -> EditResult:
    """Edit only where the edited prompt predicts other noise than the source's.

    The mask: the image is noised to half of the steps by several noises, and for each the
    conditional noise of both prompts is predicted. Their distance is averaged over noises and
    channels, outliers are cut to three times the mean, the rest is scaled to [0, 1], and the
    mask is what is above the threshold. Then guided sampling starts from the source's stored
    latent, and after each step the latent outside the mask becomes the stored one.

    The paper encodes the image by DDIM without a prompt; here the latents are those of whatever
    method inverted it.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image, by a method that has a trajectory.
        prompts: E edited prompts, or one; each has a mask of its own.
        strength: r, the share of the steps that are taken, 0 to 1: sampling starts at step
            T - int(T strength).
        seed: of the noises, which are drawn on the CPU.
        noises: n, how many the differences are averaged over.
        mask_threshold: above which a position is edited, 0 to 1.
        mask_rule: what is scaled to [0, 1]: `paper`, the range from the smallest difference to the
            largest; `diffusers`, that from 0 to three times the mean, so that the threshold 0.5
            stands for 1.5 times the mean.
        guidance_scale: w of the edits; None: the inversion's.
        negative_prompt: see `nti.edit_latents`.
        mix: see there.
        proximal: see there.
        callback: see `nti.errors.Callback`; each noise counts as a step.

    Returns:
        The edits, with their masks.

    Raises:
        ValueError: settings that do not fit, an inversion without a trajectory, or a prompt that
            differs nowhere from the source's.
        NotFiniteError: noise or latents that overflow.
        Stopped: by the callback.

    """
    prompts = texts("prompts", prompts)
    rows = EditRows.create(
        model, inversion, prompts, guidance_scale=guidance_scale, negative_prompt=negative_prompt,
        mix=mix, proximal=proximal,
    )  # fmt: skip
    rows.check_trajectory("DiffEdit")
    start = rows.schedule.first_step(strength)
    count = a_whole_number("noises", noises, 1, 1000)
    threshold = a_number("mask_threshold", mask_threshold, 0, 1)
    rule = a_choice("mask_rule", mask_rule, RULES)
    generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, 2**63 - 1))
    a_callable("callback", callback)
    _check_prompts(rows, prompts)
    drawn = draw(generator, count, rows.encoded)
    total = count + rows.schedule.steps - start
    differences = _differences(rows, drawn, part_of(callback, 0, total))
    mask = _scaled(differences, rule) > threshold
    if not mask.flatten(1).any(dim=1).all():
        raise ValueError(
            f"mask_threshold: got {threshold}, above which an edit has no position, expected less"
        )

    def kept(i: int, edits: Tensor) -> Tensor:
        return torch.where(mask[:, None], edits, rows.visited[i + 1])

    edits = rows.visited[start].expand(rows.count, -1, -1, -1)
    latents = rows.sample(edits, start, "DiffEdit", part_of(callback, count, total), after=kept)
    masks = mask.expand(rows.schedule.steps - start, -1, -1, -1)
    return decoded(model, EditedLatents(latents, rows.visited[-1:], masks))


def _differences(rows: EditRows, noises: Tensor, callback: Callback | None) -> Tensor:
    """Return abs(eps(z, P*) - eps(z, P)) (E, h, w), the mean over channels and noises.

    `noises` are (n, 1, 4, h, w).
    """
    schedule, model, i = rows.schedule, rows.model, _middle(rows)
    total = torch.zeros_like(rows.encoded[:, 0])
    for number, noise in enumerate(noises):
        z = noised(rows.encoded, noise, schedule.alpha_bar[i]).expand(1 + rows.count, -1, -1, -1)
        eps = model.steps.noise(z, schedule.timestep(i, z), rows.cond[i])
        check_finite(eps, f"DiffEdit's mask at timestep {schedule.timesteps[i]}", model.dtype)
        total = total + (eps[1:] - eps[:1]).abs().mean(dim=1)
        report(callback, number + 1, len(noises))
    return total / len(noises)


def _middle(rows: EditRows) -> int:
    """Return the step at which the prompts are compared; of a single step, that one."""
    return min(rows.schedule.first_step(NOISE_SHARE), rows.schedule.steps - 1)


def _check_prompts(rows: EditRows, prompts: Sequence[str]) -> None:
    """Raise ValueError for a prompt that predicts what the source's does: 0 / 0 is no mask.

    Words and embeddings are compared, as equal rows of a batch may differ by a rounding.
    """
    source, *edits = rows.cond[_middle(rows)]
    learned = rows.inversion.cond is not None  # then equal words may have other embeddings
    for number, (prompt, edit) in enumerate(zip(prompts, edits, strict=True)):
        same = not learned and clean(prompt) == clean(rows.inversion.prompt)
        if same or torch.equal(edit, source):
            raise ValueError(
                f"prompts[{number}]: got {prompt!r}, whose noise differs nowhere from the source's,"
                " expected other words: there is no mask of them; change a word, or edit with"
                " masked, which is given a mask"
            )


def _scaled(differences: Tensor, rule: str) -> Tensor:
    """Scale differences (E, h, w), less their outliers, to [0, 1]."""
    most = OUTLIER * differences.mean(dim=(1, 2), keepdim=True)
    cut = differences.minimum(most)
    if rule == "diffusers":
        return cut / most
    low, high = (f(cut, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
    return (cut - low) / (high - low)
