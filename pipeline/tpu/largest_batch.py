"""The largest batch of a replica that fits into its memory: predicted from compilations, or found by compiling."""

import math
from collections.abc import Callable

from pipeline.tpu.estimate import Estimate, LargestBatch

ATTEMPTS = 4  # compilations of a search beyond the first


def predict(estimate: Estimate, multiple: int) -> LargestBatch:
    """The prediction from one compilation; no smaller than its own batch where that fits."""
    batch = from_one(estimate, multiple)
    if batch is not None and estimate.fit.fits:
        batch = max(batch, estimate.workload.replica_batch)
    return LargestBatch(batch, largest_is_verified=False)


def from_one(estimate: Estimate, multiple: int) -> int | None:
    """The largest batch, a multiple of `multiple`, that should fit by one compilation; None where that was refused.

    Temporaries and the batch are taken to grow with it, all else not. Some temporaries, the gradients among them, do
    not grow, so that a batch above the compiled one rather fits than not.
    """
    if estimate.compiled_memory is None:
        return None
    growing_bytes = estimate.compiled_memory.temporary_bytes + estimate.arguments.batch_bytes
    slope = growing_bytes / estimate.workload.replica_batch
    free_bytes = estimate.fit.hbm_bytes - (estimate.fit.needed_bytes - growing_bytes)
    return max(int(free_bytes / slope) // multiple * multiple, 0)


def from_two(first: Estimate, second: Estimate, multiple: int) -> int:
    """The same from two compilations of different batches: memory as a line through both."""
    sizes = [each.workload.replica_batch for each in (first, second)]
    slope = (second.fit.needed_bytes - first.fit.needed_bytes) / (sizes[1] - sizes[0])
    if slope <= 0:
        return max(sizes)
    fixed_bytes = first.fit.needed_bytes - slope * sizes[0]
    return max(int((first.fit.hbm_bytes - fixed_bytes) / slope) // multiple * multiple, 0)


def search(estimate: Estimate, multiple: int, attempt: Callable[[int], Estimate]) -> LargestBatch:
    """The largest batch that the compiler takes, as far as `ATTEMPTS` compilations find it; 0 if it takes none.

    Where the first `estimate` does not fit, batches are halved until one does. A line of memory through two batches
    that fit then predicts the largest; it is compiled, and where it does not fit, one an eighth smaller.
    """
    fitting, refused, size = [], None, estimate.workload.replica_batch
    if estimate.fit.fits:
        fitting = [estimate]
        size = max(from_one(estimate, multiple), size + multiple) // multiple * multiple  # the prediction may be low
    else:
        refused = size
        size = size // 2 // multiple * multiple
    attempts = 0
    while attempts < ATTEMPTS and size >= multiple and size not in [each.workload.replica_batch for each in fitting]:
        attempts += 1
        compiled = attempt(size)
        if compiled.fit.fits:
            fitting.append(compiled)
        else:
            refused = min(size, refused or size)
        size = _next(fitting, refused, multiple)
    largest = max((each.workload.replica_batch for each in fitting), default=0)
    return LargestBatch(largest, largest_is_verified=True)


def _next(fitting: list[Estimate], refused: int | None, multiple: int) -> int:
    """The batch to try next, 0 for none: below what was refused, by the line through the largest two that fit."""
    if not fitting:
        return refused // 2 // multiple * multiple
    *_, largest = ordered = sorted(fitting, key=lambda each: each.workload.replica_batch)
    size = from_two(ordered[-2], largest, multiple) if len(ordered) > 1 else from_one(largest, multiple)
    if refused and size >= refused:
        size = refused * 7 // 8 // multiple * multiple
    size = min(size, refused - multiple if refused else math.inf)
    return size if size > largest.workload.replica_batch else 0
