"""The common parts of all training runs: a clock of CPU time, a learning rate, averaged weights, a log, and checkpoints to resume from."""

import copy
import time
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lolrt.muon import Muon
from lolrt.pipeline import preferred_dtype

WARMUP_STEPS = 50
DECAY_SHARE = 0.3  # share of the time, at the end, in which the learning rate falls to zero
MAX_AVERAGING = 0.997  # per step, of the exponential moving average

Model = TypeVar("Model", bound=nn.Module)


def autocast() -> torch.autocast:
    """Matrix products in bfloat16 if the CPU can multiply it; otherwise in float32, because torch's bfloat16 products are many times
    slower there."""
    return torch.autocast("cpu", torch.bfloat16, enabled=preferred_dtype() == torch.bfloat16)


class Run(Generic[Model]):
    """One training run. Its budget is in minutes of the process's CPU time, so other work on the machine does not shorten it. It resumes
    from its checkpoint if there is one.

    model: trained in place. averaged: its moving average, which is evaluated and shipped.
    """

    def __init__(self, name: str, work: Path, model: Model, optimizer: Muon, minutes: float, peak_lr: float, report_seconds: float = 60):
        self.name, self.work, self.model, self.optimizer = name, work, model, optimizer
        self.minutes, self.peak_lr, self.report_seconds = minutes, peak_lr, report_seconds
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._averages: list[Tensor] = [a for a, p in zip(self.averaged.parameters(), model.parameters(), strict=True) if p.requires_grad]
        self.step_number, self.seconds, self._saved_at = 0, 0.0, 0.0
        self._losses: list[float] = []
        if self.path.exists():
            state = torch.load(self.path)
            model.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["averaged"])
            optimizer.load_state_dict(state["optimizer"])
            self.step_number, self.seconds = state["step"], state["seconds"]
            self._saved_at = self.seconds
        self._tick = time.process_time()

    @property
    def path(self) -> Path:
        return self.work / f"{self.name}.pt"

    @property
    def progress(self) -> float:
        """The share of the budget that is used, 0 to 1."""
        return min(1.0, self.seconds / 60 / self.minutes)

    def going(self) -> bool:
        return self.progress < 1

    def generator(self) -> torch.Generator:
        """The random generator of the current step, the same after a restart."""
        return torch.Generator().manual_seed(self.step_number)

    def learning_rate(self) -> float:
        return self.peak_lr * min(1.0, (self.step_number + 1) / WARMUP_STEPS, (1 - self.progress) / DECAY_SHARE)

    def step(self, loss: Tensor) -> None:
        """One update. Raises FloatingPointError when the loss is not finite."""
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{self.name}: loss is {loss.item()} at step {self.step_number}; go on from the checkpoint with a lower rate"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step(self.learning_rate())
        self.step_number += 1
        averaging = min(MAX_AVERAGING, self.step_number / (self.step_number + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self.parameters, 1 - averaging)
        self._losses.append(loss.item())
        now = time.process_time()
        self.seconds, self._tick = self.seconds + now - self._tick, now

    def report_due(self) -> bool:
        """Whether it is time to evaluate and `report`: every `report_seconds` and at the end."""
        return self.seconds - self._saved_at >= self.report_seconds or not self.going()

    def report(self, results: str) -> None:
        """Logs a line and writes the checkpoint."""
        mean_loss = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        line = f"{self.name} {self.seconds / 60:.1f} min step {self.step_number} loss {mean_loss:.4f} {results}"
        print(line, flush=True)
        with open(self.work / "training.log", "a") as log:
            log.write(line + "\n")
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save({**state, "step": self.step_number, "seconds": self.seconds}, partial)
        partial.replace(self.path)
        self._saved_at = self.seconds
        self._tick = time.process_time()  # evaluation is not training time
