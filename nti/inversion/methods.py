"""The inversion methods: one row each, of what `nti.inversion.follow` and the pivots combine.

A method has a pivot, something that learns so that guided sampling follows it, and a rule for what
its edits are given. To add one is to add a row, and a function where a new idea needs one.
"""

from dataclasses import dataclass

__all__ = ["GENERATED", "METHODS", "MOST", "PIVOTS", "Method", "is_searched", "method_of", "passes"]

MOST = 10_000
"""Of timesteps, and of iterations at one of them."""

PIVOTS = ("ddim", "fixed-point", "anderson")
"""The pivots that a user can choose under any method that starts from `ddim`."""


@dataclass(frozen=True)
class Method:
    """How an image is inverted."""

    name: str
    paper: str
    """Where it is from, by its arXiv number."""
    summary: str
    pivot: str = "ddim"
    """`ddim`: inversion at guidance 1; `one-noise`: z_0 noised by one noise for all timesteps;
    `many-noises`: by one for each; `none`: there is no trajectory."""
    learns: str = "nothing"
    """`null`: what stands for psi(""); `prompt`: what stands for psi(P); or `nothing`."""
    start: str = "null"
    """What stands for psi("") at first: `null`, psi("") itself, or `prompt`, what lies between
    psi(P) and that, as `InversionSettings.start` says."""
    guided_start: float = 0.0
    """How far from psi(P) to psi("") it starts, along the arc, times w, where the settings do not
    say: guidance multiplies what is to be made up for from there."""
    by: str = "descent"
    """The function of `nti.inversion.follow` that finds the latents of the source."""
    eta: float = 0.0
    """Of the sampler: 0 is DDIM, 1 DDPM."""
    keeps: str = ""
    """What an inversion has beside its null embeddings: `prompts`, one embedding of the prompt for
    each timestep; `offsets`, what is added to each step of the source; `shared offsets`, which the
    edits get, too."""
    replayed: bool = False
    """Whether the latents of the source are kept ones, which sampling alone does not give again."""
    takes: tuple[str, ...] = ()
    """The settings of its own: see `settings`."""
    edits_start: str = "own"
    """What stands for psi("") in edits: `own`, what the source has, or `null`, psi("")."""
    edits_mix: float = 1.0
    """How much of an edit's prompt is the target's embedding; the rest is the source's learned
    one."""

    @property
    def optimizes(self) -> bool:
        """Whether it has inner iterations."""
        return self.learns != "nothing" or self.by == "offsets"

    @property
    def settings(self) -> frozenset[str]:
        """The names of the settings that it reads, beside those that all read: T and w."""
        iterates = self.optimizes and self.by != "line-search"
        stops = iterates and self.by == "descent"
        draws = self.pivot in ("one-noise", "many-noises") or self.by in ("noise-each", "noise-all")
        return frozenset(
            (
                *(("pivot", "pivot_iterations", "noise_at") if self.pivot == "ddim" else ()),
                *(("inner_steps", "learning_rate") if iterates else ()),
                *(("threshold",) if stops else ()),
                *(("seed",) if draws else ()),
                *self.takes,
            )
        )

    @property
    def watched(self) -> bool:
        """Whether it tells how far it is after every step, and a run that was ended goes on there.

        The others tell by the callback, and go on from their pivot.
        """
        return self.by in ("descent", "line-search")

    @property
    def stores(self) -> str:
        """What an inversion holds of it, beside the latents, in words."""
        shared = self.by in ("sweeps", "noise-all")
        learned = {"null": "null embedding", "prompt": "prompt embedding"}.get(self.learns)
        found = [] if learned is None else [f"one {learned}" if shared else f"T {learned}s"]
        found += ["T offsets"] if "offsets" in self.keeps else []
        return ", ".join(found) or "nothing"

    @property
    def edits_as_null_text(self) -> bool:
        """Whether null embeddings and latents are all that its edits take from an inversion."""
        whole = self.edits_start == "own" and self.edits_mix == 1
        return self.sampled and whole and self.eta == 0 and not (self.keeps or self.replayed)

    @property
    def sampled(self) -> bool:
        """Whether it has a trajectory, from z_T to z_0."""
        return self.pivot != "none"


_ROWS = (
    Method(
        "null-text", "2211.09794",
        "one null embedding a timestep follows the pivot (Algorithm 1)",
        learns="null",
    ),
    Method(
        "null-text-fast", "2211.09794",
        "null-text from part of the way to the prompt, by 27 measured steps for 50 timesteps",
        start="prompt", guided_start=1.5, learns="null", by="line-search", takes=("towards_null",),
    ),
    Method(
        "null-text-single-branch", "2310.01506",
        'null-text, whose edits have psi("") instead of the embeddings that it learned',
        learns="null", edits_start="null",
    ),
    Method(
        "null-text-global", "2211.09794",
        "one null embedding for all timesteps follows the pivot, in sweeps (Algorithm 2)",
        learns="null", by="sweeps",
    ),
    Method(
        "null-text-random-pivot", "2211.09794",
        "null-text, whose pivot is the image noised by one random noise",
        pivot="one-noise", learns="null",
    ),
    Method(
        "null-text-no-pivot", "2211.09794",
        "null embeddings that predict fresh noise, with no pivot to follow",
        learns="null", by="noise-each",
    ),
    Method(
        "textual-inversion", "2208.01618",
        "one embedding of the prompt that predicts fresh noise at all timesteps",
        learns="prompt", by="noise-all", keeps="prompts",
    ),
    Method(
        "textual-inversion-pivot", "2211.09794",
        "one embedding of the prompt a timestep follows the pivot",
        learns="prompt", keeps="prompts",
    ),
    Method(
        "prompt-tuning", "2305.04441",
        "textual inversion with a pivot; edits interpolate between it and the edited prompt",
        learns="prompt", keeps="prompts", edits_mix=0.9,
    ),
    Method(
        "negative-prompt", "2305.16807",
        'the prompt\'s own embedding stands for psi("")',
        start="prompt", takes=("towards_null",),
    ),
    Method("ddim", "2010.02502", 'DDIM inversion, then guided sampling with psi("")'),
    Method(
        "direct", "2310.01506",
        "the source's latents are the pivot's, so guided sampling cannot leave it",
        by="pull", replayed=True, takes=("pull_share", "pull_every"),
    ),
    Method(
        "direct-both-branches", "2310.01506",
        "what leads the source back to the pivot is added to the edits' steps, too",
        by="pull", keeps="shared offsets", takes=("pull_share", "pull_every"),
    ),
    Method(
        "null-latent", "2310.01506",
        "what is added to each step of the source is learned, not computed",
        by="offsets", keeps="offsets",
    ),
    Method(
        "edit-friendly", "2304.06140",
        "noises of the DDPM sampler that lead exactly to the image, from independent ones",
        pivot="many-noises", by="pull", eta=1.0, keeps="shared offsets",
    ),
    Method(
        "autoencoder", "2112.10752",
        "the encoded image alone: the bound of every reconstruction",
        pivot="none", by="pull", replayed=True,
    ),
)  # fmt: skip

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
"""What `nti.invert` knows."""

GENERATED = "generated"
"""The method of an inversion that `nti.generate` made, without an image."""


def passes(method: Method, steps: int, inner_steps: int) -> tuple[int, int]:
    """Return how many forward and backward passes of the UNet a method takes at most.

    Args:
        method: its row, on DDIM's pivot where it has one.
        steps: T timesteps.
        inner_steps: N.

    Returns:
        Passes of one image, with the settings' defaults.

    """
    pivot, sampling = steps if method.pivot == "ddim" else 0, 2 * steps
    iterations = steps * inner_steps if method.learns != "nothing" else 0
    searches = sum(is_searched(i, steps) for i in range(steps))
    forward, backward = {
        "descent": (sampling + iterations, iterations),
        "line-search": (sampling + searches, searches),
        "sweeps": (sampling + 3 * iterations, iterations),
        "noise-each": (sampling + 2 * iterations, iterations),
        "noise-all": (sampling + iterations, iterations),
        "pull": (0 if method.replayed else sampling, 0),
        "offsets": (sampling, 0),
    }[method.by]
    return pivot + forward, backward


def is_searched(index: int, steps: int) -> bool:
    """Whether `null-text-fast` searches at a timestep; elsewhere the embedding stays.

    Of 50 it does at every one from the 27th on, whose errors hardly anything corrects later, and at
    every eighth before, so that the first half does not lead away.
    """
    return 50 * index >= 27 * steps or index % max(1, round(steps * 8 / 50)) == 0


def method_of(name: str) -> Method:
    """Return a method's row; a generated picture has that of `ddim`, without an image."""
    return METHODS["ddim" if name == GENERATED else name]
