"""Sharpness-aware minimisation (SAM): the gradient is taken where the loss nearby is highest, to first order.

Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import tensorflow as tf

from pipeline.train import distribution

SCOPES = ("replica", "global")
Outputs = TypeVar("Outputs")
Source: TypeAlias = tf.Variable | tf.Tensor


@dataclasses.dataclass(frozen=True)
class SAM:
    """Perturbs the weights by `rho` along the gradient, and gives the gradient found there.

    Attributes:
      rho: L2 length of the perturbation, over all trained weights together; more than 0.
      scope: 'replica' perturbs each replica's weights along the gradient of its own examples, as the authors do and
        without communication; 'global' perturbs all alike, along the gradient of the global batch.
    """

    rho: float = 0.05
    scope: str = "replica"

    def __post_init__(self):
        if self.rho <= 0:
            raise ValueError(f"SAM.rho is {self.rho}, with which SAM does nothing at twice the cost: leave SAM out.")
        if self.scope not in SCOPES:
            raise ValueError(f"SAM.scope is {self.scope!r}; expected one of {', '.join(SCOPES)}.")

    def gradients(
        self,
        compute: Callable[[Sequence[Source]], tuple[Sequence[tf.Tensor], Outputs]],
        sources: Sequence[Source],
    ) -> tuple[Sequence[tf.Tensor], Outputs]:
        """Calls `compute` at the current and at the perturbed weights, inside `strategy.run`.

        Args:
          compute: maps weights to the gradients of this replica's share of the loss, and anything else.
          sources: the weights, variables or tensors. Variables are moved, and end with the very bits that they had.

        Returns:
          The gradients at the perturbed weights, and the rest of what `compute` gave at the current ones.
        """
        gradients, outputs = compute(sources)
        direction = list(gradients)
        if self.scope == "global":
            context = tf.distribute.get_replica_context()
            direction = context.all_reduce(tf.distribute.ReduceOp.SUM, direction)
        scale = self.rho / tf.maximum(tf.linalg.global_norm(direction), 1e-12)
        before = [tf.identity(source) for source in sources]
        moved = [w + scale * g for w, g in zip(before, direction, strict=True)]
        variables = {i: source for i, source in enumerate(sources) if isinstance(source, tf.Variable)}
        _assign_locally(list(variables.values()), [moved[i] for i in variables])
        gradients, _ = compute([variables.get(i, value) for i, value in enumerate(moved)])
        # Written back, not subtracted: a subtraction would round.
        _assign_locally(list(variables.values()), [before[i] for i in variables])
        return gradients, outputs


def _assign_locally(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    """Gives each replica's copy of the variables its own values."""
    distribution.update_locally(variables, lambda variable, value: variable.assign(value), values)
