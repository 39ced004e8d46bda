"""Compute of a run: in FLOPs, in seconds, or in TPU-v4 core-hours."""

from pipeline.model import speeds
from pipeline.study.errors import StudyError

CORE_HOURS, FLOPS, SECONDS = "core_hours", "flops", "seconds"
LABELS = {
    CORE_HOURS: "TPU-v4 core-hours of pre-training",
    FLOPS: "FLOPs of pre-training",
    SECONDS: "seconds of pre-training",
}


def of_run(summary: dict, unit: str) -> float:
    """Compute of the run that wrote `summary` (its `run.json`), in `unit`.

    Raises:
      StudyError: the unit is unknown, or the summary does not hold what it takes.
    """
    try:
        if unit == SECONDS:
            return summary["seconds"]
        flops = 3 * summary["flops_per_image"]
        if unit == FLOPS:
            return flops * summary["images_seen"]
        if unit == CORE_HOURS:
            return speeds.core_hours(summary["variant"], summary["images_seen"], flops)
    except KeyError as error:
        raise StudyError(f"A run.json lacks {error}, so its compute in {unit} is unknown: run it anew.") from error
    except speeds.UnknownSpeedError as error:
        raise StudyError(str(error)) from error
    raise StudyError(f"Unknown unit {unit!r}; expected one of {', '.join(LABELS)}.")
