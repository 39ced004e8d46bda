"""What a run on a TPU did, beside what was estimated: the numbers that show how good the estimate is."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from pipeline.tpu.estimate import Estimate, StepTime

Numbers = dict[str, float | str]


class ReportError(ValueError):
    """The run has not come far enough to be measured."""


def numbers(lines: Sequence[Mapping], estimate: Estimate, time: StepTime) -> Numbers:
    """Ten numbers of a run, and what it ran on.

    Args:
      lines: of the run's `metrics.jsonl`, oldest first.
      estimate: of its step on its slice.
      time: the estimate's.

    Raises:
      ReportError: fewer than three loops are done. The first holds the compilation and does not count.
    """
    loops = [(line["step"], line["seconds"]) for line in lines if "seconds" in line]
    if len(loops) < 3:
        raise ReportError(f"metrics.jsonl holds {len(loops)} loops of training; a report needs 3 or more.")
    seconds = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in itertools.pairwise(loops)]
    step_seconds, last = statistics.median(seconds), next(line for line in reversed(lines) if "seconds" in line)
    place, work = estimate.placement, estimate.workload
    cores = place.replicas * place.cores_per_replica
    return {
        "run": f"{work.model}, {work.train_size} pixels, {work.global_batch} images on {place.topology}",
        "versions": ", ".join(map(" ".join, estimate.provenance.versions.items())),
        "steps/s, median of the loops": 1 / step_seconds,
        "steps/s, slowest loop": 1 / max(seconds),
        "steps/s, estimated": 1 / time.step_seconds,
        "measured over estimated": time.step_seconds / step_seconds,
        "images/s per core": work.global_batch / step_seconds / cores,
        "MFU": time.mfu * time.step_seconds / step_seconds,
        "seconds of the first loop, with compilation": loops[0][1],
        "steps done": loops[-1][0],
        "loss of the last loop": last["loss"],
        "epochs that consumed each example exactly once": last["epochs_exactly_once"],
    }
