"""The memory that a training step takes at least, counted in its own graph while that is traced."""

import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Set

import psutil
import tensorflow as tf

# Operations whose output may be the very buffer of their first input.
_VIEWS = {"ExpandDims", "Identity", "PreventGradient", "Reshape", "Squeeze", "StopGradient"}
# Operations whose output is a variable, an argument or a constant: no memory of the step's own.
_NOT_COMPUTED = {"Arg", "Const", "Placeholder", "ReadVariableOp"}
# Operations that take no more than an input's shape.
_SHAPE_ONLY = {"BroadcastGradientArgs", "Rank", "Shape", "ShapeN", "Size", "ZerosLike", "OnesLike"}


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


def check(images: int, parts: int, kept: int, state: int, available: int) -> None:
    """Raises where a step takes more memory than there is, whatever the order of its operations.

    Args:
      images: of one replica.
      parts: in how many parts, one after the other, they are taken.
      kept: bytes of activations of one part, see `kept_bytes`.
      state: bytes of weights, their average and the optimiser's state.
      available: bytes of memory that there are.

    Raises:
      OutOfMemoryError: with the estimate, what there is, and what would fit.
    """
    room, at_once = available - state, images // parts
    if kept <= room:
        return
    advice = "No batch of this model fits: take a smaller variant."
    if fitting := at_once * max(room, 0) // kept:
        more = next(n for n in range(parts, images + 1) if images % n == 0 and images // n <= fitting)
        advice = (
            f"At most about {fitting:,} images fit at once. Lower the batch (Data.batch), or keep it and set "
            f"Experiment.accumulation_steps = {more}, or lower the resolution (Data.train_size), or take a smaller "
            "variant."
        )
    raise OutOfMemoryError(
        f"A training step that takes {at_once:,} images at once needs at least {_size(kept + state)} of memory: "
        f"{_size(kept)} for activations and {_size(state)} for weights and their optimiser. This machine has "
        f"{_size(available)}. {advice}"
    )


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
