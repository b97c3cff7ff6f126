"""An `EditPlan` on disk, for runtimes: the numbers of each step, so that none needs a tokenizer or
an alignment. docs/embedding.md describes the file.
"""

from pathlib import Path

import torch
from torch import Tensor

from nti.editing.plan import EditPlan
from nti.inversion.tensor_file import write_tensors
from nti.networks.tokenizer import Tokenizer

__all__ = ["FORMAT", "KEY", "write_plan"]

KEY, FORMAT = "plan", "nti-plan-1"


def write_plan(path: str | Path, plan: EditPlan, tokenizer: Tokenizer) -> None:
    """Write a plan's tensors, in sampling order.

    Args:
        path: of the file, which is a safetensors file.
        plan: of E edits over T steps.
        tokenizer: that the plan was made with.

    Raises:
        ValueError: a factor that float32 cannot hold.
        OSError: a path that cannot be written.

    """
    plan.check_dtype(torch.float32)
    header = {
        "format": FORMAT,
        "source": plan.source,
        "prompts": list(plan.prompts),
        "modes": [alignment.mode for alignment in plan.alignments],
        "steps": plan.steps,
        "edits": len(plan.prompts),
        "blend_start": None if plan.blend is None else plan.blend.start,
        "blend_threshold": None if plan.blend is None else plan.blend.threshold,
        "blend_from": plan.steps if plan.blend is None else plan.blend.first_step(plan.steps),
    }
    write_tensors(path, KEY, header, tensors_of(plan, tokenizer))


def tensors_of(plan: EditPlan, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return what a runtime hands to the controlled step, and what local blend needs.

    The step's batch has 2 E + 1 rows: the edits' unconditional rows, the source's conditional one,
    the edits'.
    """
    count, source = len(plan.prompts), len(plan.prompts)
    controls, blend = plan.controls, plan.blend
    each = [controls.control(i, 2 * count + 1, None) for i in range(plan.steps)]
    tokens = controls.source_mix.shape[-1]
    words = torch.zeros(1 + count, tokens, 2 * count) if blend is None else blend.words.float()
    nowhere = torch.zeros(2, count, dtype=torch.bool)
    blends, subtracts = nowhere if blend is None else (blend.blends, blend.subtracts)
    return {
        "null_tokens": tokenizer([""]),
        "tokens": tokenizer([plan.source, *plan.prompts]),
        "source_mix": controls.source_mix.float(),
        "own_mix": controls.own_mix.float(),
        "source_rows": torch.full((count,), source, dtype=torch.int64),
        "self_rows": torch.stack([_rows(control.self_rows) for control in each]),
        "words": words,
        "blends": blends.to(torch.uint8),
        "subtracts": subtracts.to(torch.uint8),
    }


def _rows(rows: Tensor | None) -> Tensor:
    assert rows is not None  # of a schedule each step has them
    return rows
