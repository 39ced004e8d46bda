"""The largest batch of a replica that fits into its memory: predicted from compilations, or found by compiling."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from pipeline.tpu.estimate import Estimate, LargestBatch

ATTEMPTS = 4  # compilations of a search beyond the first


class FittingBatch(NamedTuple):
    """A batch of a replica that was compiled and fits.

    Attributes:
      images: in the batch.
      needed_bytes: memory that the step takes.
      growing_bytes: the part of it that is taken to grow with the batch: temporaries and the batch itself. Some
        temporaries, the gradients among them, do not grow, so that a batch above this one rather fits than not.
      hbm_bytes: memory that there is.
    """

    images: int
    needed_bytes: int
    growing_bytes: int
    hbm_bytes: int

    @classmethod
    def of(cls, estimate: Estimate) -> "FittingBatch | None":
        """The batch of an estimate; None where it does not fit."""
        memory = estimate.compiled_memory
        if memory is None:
            return None
        growing_bytes = memory.temporary_bytes + estimate.arguments.batch_bytes
        return cls(estimate.workload.replica_batch, memory.total_bytes, growing_bytes, estimate.fit.hbm_bytes)


def predict(estimate: Estimate, multiple: int) -> LargestBatch:
    """The prediction from one compilation: no smaller than its own batch, None where that does not fit."""
    batch = FittingBatch.of(estimate)
    images = max(from_one(batch, multiple), batch.images) if batch else None
    return LargestBatch(images, largest_is_verified=False)


def from_one(batch: FittingBatch, multiple: int) -> int:
    """The largest batch, a multiple of `multiple`, that should fit by one compilation."""
    slope = batch.growing_bytes / batch.images
    free_bytes = batch.hbm_bytes - (batch.needed_bytes - batch.growing_bytes)
    return max(int(free_bytes / slope) // multiple * multiple, 0)


def from_two(first: FittingBatch, second: FittingBatch, multiple: int) -> int:
    """The same from two compilations of different batches: memory as a line through both."""
    slope = (second.needed_bytes - first.needed_bytes) / (second.images - first.images)
    if slope <= 0:
        return max(first.images, second.images)
    fixed_bytes = first.needed_bytes - slope * first.images
    return max(int((first.hbm_bytes - fixed_bytes) / slope) // multiple * multiple, 0)


def search(estimate: Estimate, multiple: int, attempt: Callable[[int], Estimate]) -> LargestBatch:
    """The largest batch that the compiler takes, as far as `ATTEMPTS` compilations find it; 0 if it takes none.

    Where the first `estimate` does not fit, batches are halved until one does. A line of memory through two batches
    that fit then predicts the largest; it is compiled, and where it does not fit, one an eighth smaller.
    """
    fitting: list[FittingBatch] = []
    refused, size = sys.maxsize, estimate.workload.replica_batch
    if first := FittingBatch.of(estimate):
        fitting.append(first)
        size = max(from_one(first, multiple), size + multiple) // multiple * multiple  # the prediction may be low
    else:
        refused = size
        size = size // 2 // multiple * multiple
    attempts = 0
    while attempts < ATTEMPTS and size >= multiple and size not in [batch.images for batch in fitting]:
        attempts += 1
        if batch := FittingBatch.of(attempt(size)):
            fitting.append(batch)
        else:
            refused = min(size, refused)
        size = _next(fitting, refused, multiple)
    largest = max((batch.images for batch in fitting), default=0)
    return LargestBatch(largest, largest_is_verified=True)


def _next(fitting: list[FittingBatch], refused: int, multiple: int) -> int:
    """The batch to try next, 0 for none: below what was refused, by the line through the largest two that fit."""
    if not fitting:
        return refused // 2 // multiple * multiple
    *_, largest = ordered = sorted(fitting)
    size = from_two(ordered[-2], largest, multiple) if len(ordered) > 1 else from_one(largest, multiple)
    if size >= refused:
        size = refused * 7 // 8 // multiple * multiple
    size = min(size, refused - multiple)
    return size if size > largest.images else 0
