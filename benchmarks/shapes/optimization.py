"""What both training stages share: the learning-rate schedule, the moving average, and checkpoints
to resume from.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Trainer", "learning_rate"]


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@dataclass
class Trainer:
    """AdamW, a moving average of the weights, and a state on disk to resume from."""

    module: nn.Module
    steps: int
    peak: float
    path: Path
    decay: float = 0.999
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=self.peak,
            betas=(0.9, 0.99),
            weight_decay=self.weight_decay,
            fused=True,
        )
        self.average = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.step, self.seconds, self._resumed = 0, 0.0, time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state.get("seconds", 0.0)
            self.average = {k: state["average"][k].to(v.device) for k, v in self.average.items()}

    def update(self, loss: Tensor) -> None:
        """One step of AdamW at the scheduled learning rate, then of the moving average."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.peak)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def elapsed(self) -> float:
        """Seconds of training in all, over every call that went on from the state."""
        return self.seconds + time.monotonic() - self._resumed

    def save(self) -> None:
        """Write the state to `path`, whole or not at all."""
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
            "seconds": self.elapsed(),
        }
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.path)
