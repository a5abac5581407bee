"""Periodic re-grounding: reinforcement learning and jumps in turn, as a plan of a run.

It is a schedule around two-point extrapolation, no method of its own: every jump needs the training that came before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from next_ray.extrapolate.methods.common import check


@dataclass(frozen=True)
class Leg:
    """One stretch of training and the jump behind it.

    Args:
        start_step: the step the model stands for when training begins: steps trained and steps jumped so far.
        train_steps: RL steps from there to W_s.
        jump_steps: steps that the jump stands for; 0: training ends here.
    """

    start_step: int
    train_steps: int
    jump_steps: int

    @property
    def end_step(self) -> int:
        """The step the model stands for after the jump."""
        return self.start_step + self.train_steps + self.jump_steps

    @property
    def a(self) -> float:
        """The paper's factor: W = W_b + a (W_s - W_b), a = (t* - t_b) / (t_s - t_b), with W_b the model at `start_step`."""
        return (self.train_steps + self.jump_steps) / self.train_steps

    @property
    def alpha(self) -> float:
        """The same jump as W_s + alpha (W_s - W_b): `two-point` at a horizon of the whole leg."""
        return self.jump_steps / self.train_steps


@dataclass(frozen=True)
class ReGrounding:
    """Periodic re-grounding (RL-Extra, arXiv 2601.04537): m RL steps, a jump of n steps, and again from the jumped model.

    The paper takes m = n = 100, which is a = 2.

    Args:
        train_steps: m.
        jump_steps: n.
    """

    train_steps: int = 100
    jump_steps: int = 100

    def __post_init__(self) -> None:
        """Raises `ConfigError` for settings out of range."""
        check(self.train_steps >= 1, "re-grounding: train_steps", "at least 1", self.train_steps)
        check(self.jump_steps >= 0, "re-grounding: jump_steps", "at least 0", self.jump_steps)

    def legs(self, target_step: int) -> Iterator[Leg]:
        """The legs that bring a model to `target_step`; the last one is cut where that is reached, its training first."""
        step = 0
        while step < target_step:
            trained = min(self.train_steps, target_step - step)
            leg = Leg(step, trained, min(self.jump_steps, target_step - step - trained))
            yield leg
            step = leg.end_step
