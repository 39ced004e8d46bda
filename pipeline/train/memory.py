"""The memory that a training step takes at least, counted in its own graph while that is traced."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Set

import psutil
import tensorflow as tf
from absl import logging

# Operations whose output may be the very buffer of their first input.
_VIEWS = {"ExpandDims", "Identity", "PreventGradient", "Reshape", "Squeeze", "StopGradient"}
# Operations whose output is a variable, an argument or a constant: no memory of the step's own.
_NOT_COMPUTED = {"Arg", "Const", "Placeholder", "ReadVariableOp"}
# Operations that take no more than an input's shape.
_SHAPE_ONLY = {"BroadcastGradientArgs", "Rank", "Shape", "ShapeN", "Size", "ZerosLike", "OnesLike"}

# The estimate is a lower bound: what it leaves out was up to a fifth of what steps took (docs/recipes.md).
_CERTAIN = 0.8


def operations() -> Set[tf.Operation]:
    """The operations so far of the graph that is being traced; none outside of one."""
    return frozenset() if tf.executing_eagerly() else frozenset(tf.compat.v1.get_default_graph().get_operations())


def kept_bytes(forward: Set[tf.Operation], gradients: Iterable[tf.Tensor]) -> int:
    """Bytes that the forward pass leaves to the backward pass: they are in memory together when the loss is computed.

    Args:
      forward: operations of the forward pass.
      gradients: what the backward pass computes.
    """
    buffers: dict[object, int] = {}
    pending, seen = [gradient.op for gradient in gradients], set()
    while pending:
        operation = pending.pop()
        if operation in seen:
            continue
        seen.add(operation)
        for tensor in operation.inputs:
            if tensor.op not in forward:
                pending.append(tensor.op)
            elif operation.type not in _SHAPE_ONLY:
                while tensor.op.type in _VIEWS:
                    tensor = tensor.op.inputs[0]
                if tensor.op.type not in _NOT_COMPUTED and tensor.shape.is_fully_defined():
                    buffers[tensor.ref()] = tensor.dtype.size * math.prod(tensor.shape)
    return sum(buffers.values())


class OutOfMemoryError(ValueError):
    """The training step cannot fit into memory; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Memory, in bytes, before a step is taken.

    Attributes:
      total: what there is, swap space included; a container's limit if that is lower.
      free: what no program holds.
      held: what this process holds, files that are mapped into it left out.
    """

    total: int
    free: int
    held: int

    @classmethod
    def now(cls) -> "Machine":
        """Of this machine and this process."""
        free = psutil.virtual_memory().available + psutil.swap_memory().free
        process = psutil.Process().memory_info()
        return cls(machine_bytes(), free, process.rss - getattr(process, "shared", 0))


def check(images: int, parts: int, kept: int, state: int, machine: Machine) -> None:
    """Raises where a step takes more memory than is free, whatever the order of its operations; warns where it may.

    Args:
      images: of one replica.
      parts: in how many parts, one after the other, they are taken.
      kept: bytes of activations of one part, see `kept_bytes`.
      state: bytes of weights, their average and the optimiser's state, which the process holds.
      machine: before the first step.

    Raises:
      OutOfMemoryError: with the estimate, what there is, and what would fit.
    """
    room, at_once = max(min(machine.free, machine.total - machine.held), 0), images // parts
    if kept <= _CERTAIN * room:
        return
    advice = "No batch of this model fits: take a smaller variant, or end other programs."
    if fitting := int(at_once * _CERTAIN * room / kept):
        more = next(n for n in range(parts, images + 1) if images % n == 0 and images // n <= fitting)
        advice = (
            f"About {fitting:,} images fit at once. Lower the batch (Data.batch), or keep it and set "
            f"Experiment.accumulation_steps = {more}, or lower the resolution (Data.train_size), or take a smaller "
            "variant."
        )
    found = (
        f"A training step that takes {at_once:,} images at once needs at least {_size(kept)} of memory for "
        f"activations, beside the {_size(machine.held)} that this process holds ({_size(state)} of them weights and "
        f"their optimiser). This machine has {_size(machine.total)}, of which {_size(machine.free)} are free. {advice}"
    )
    if kept > room:
        raise OutOfMemoryError(found)
    logging.warning("The system may end this run for lack of memory. %s", found)


def state_bytes(variables: Iterable[tf.Variable]) -> int:
    """Bytes of variables."""
    return sum(variable.dtype.size * math.prod(variable.shape) for variable in variables)


def machine_bytes(cgroup: str = "/proc/self/cgroup", cgroups: str = "/sys/fs/cgroup") -> int:
    """Memory of this machine, or the limit of the container if that is lower; and the machine's swap space."""
    limits = [psutil.virtual_memory().total]
    for path in _limit_files(cgroup, cgroups):
        if os.path.exists(path):
            with open(path) as file:
                limits += [int(text) for text in file.read().split() if text.isdigit()]
    return min(limits) + psutil.swap_memory().total


def _limit_files(cgroup: str, cgroups: str) -> Iterator[str]:
    """Where Linux keeps the limits of the groups that this process is in, and of those above them."""
    if not os.path.exists(cgroup):
        return
    with open(cgroup) as file:
        lines = [line.strip().split(":", 2) for line in file]
    for _, controllers, group in lines:
        if controllers in ("", "memory"):  # version 2, version 1
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            for folder in (group, *map(str, pathlib.PurePath(group).parents)):
                yield os.path.join(cgroups, controllers, folder.strip("/"), name)


def _size(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
