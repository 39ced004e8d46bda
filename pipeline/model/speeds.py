"""The cost model: how fast a TPU-v4 core trains each variant, and so what a run costs in core-hours."""

import dataclasses
import json
import math
import os

from pipeline.model import cost

RESOLUTION, CLASSES = 224, 30_000  # of the study's pre-training
STUDY_IMAGES = 4e9  # in an epoch of JFT-4B, "about 4 billion"


class UnknownSpeedError(ValueError):
    """No speed is known for a network of this size."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Training speed of a variant at 224 pixels on one TPU-v4 core, and where the number comes from."""

    images_per_second: float
    source: str


def _reported(epochs: float, core_hours: float) -> Speed:
    return Speed(
        epochs * STUDY_IMAGES / (core_hours * 3600),
        f"reported {core_hours:g} core-hours for {epochs:g} epochs of about 4 billion images (arXiv 2310.16764)",
    )


def read_table(path: str) -> dict[str, Speed]:
    """The speeds of a table from `make tpu-table`; none where there is no such file."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        variants = json.load(file)["variants"]
    return {
        name: Speed(
            row["images_per_second_per_core"],
            f"estimated by the TPU compiler (libtpu {row['versions']['libtpu']}, {row['date']}) for our step of "
            f"{row['replica_batch']} images a core",
        )
        for name, row in variants.items()
    }


TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tpu_v4_speeds.json")
# Epochs and core-hours of the two ends of the paper's range of compute.
REPORTED_BUDGETS = {"F0": (0.25, 400), "F7+": (8, 110_000)}
REPORTED: dict[str, Speed] = {name: _reported(*budget) for name, budget in REPORTED_BUDGETS.items()}


def choose_speeds(table: dict[str, Speed]) -> dict[str, Speed]:
    """The table's speeds where it spans the family, the reported ones otherwise: one is not to be mixed with the other,
    since the authors' step and ours differ."""
    return table if REPORTED.keys() <= table.keys() else REPORTED


SPEEDS: dict[str, Speed] = choose_speeds(read_table(TABLE))


def training_flops(variant: str, resolution: int = RESOLUTION, num_classes: int = CLASSES) -> int:
    """FLOPs of a training step for an image: two a multiply-add, and three times a forward pass."""
    return 6 * cost.multiply_adds(variant, resolution, num_classes)


def speed(variant: str, flops_per_image: float | None = None) -> Speed:
    """Images/s on a TPU-v4 core: an entry of `SPEEDS`, or log-log interpolation by FLOPs between entries.

    Args:
      variant: of the NFNet family.
      flops_per_image: of training; at 224 pixels and 30k classes where None.

    Raises:
      UnknownSpeedError: the FLOPs are outside the range of the entries.
    """
    work = training_flops(variant) if flops_per_image is None else flops_per_image
    if variant in SPEEDS and math.isclose(work, training_flops(variant), rel_tol=0.02):
        return SPEEDS[variant]
    entries = sorted((training_flops(name), entry.images_per_second, name) for name, entry in SPEEDS.items())
    if not 0.98 * entries[0][0] <= work <= 1.02 * entries[-1][0]:
        raise UnknownSpeedError(
            f"No cost in TPU-v4 core-hours is known for {variant} at {work:.3g} FLOPs an image: speeds are known from "
            f"{entries[0][0]:.3g} ({entries[0][2]}) to {entries[-1][0]:.3g} ({entries[-1][2]}). Use --unit=flops or "
            "--unit=seconds, or add the variant to tools/tpu_table.py and run `make tpu-table`."
        )
    upper = next((i for i in range(1, len(entries)) if work <= entries[i][0]), len(entries) - 1)
    (low, slow, low_name), (high, fast, high_name) = entries[upper - 1], entries[upper]
    share = math.log(work / low) / math.log(high / low)
    return Speed(slow * (fast / slow) ** share, f"estimated: interpolated by FLOPs between {low_name} and {high_name}")


def core_hours(variant: str, images: float, flops_per_image: float | None = None) -> float:
    """TPU-v4 core-hours of training on `images` images; raises UnknownSpeedError where none is known."""
    return images / speed(variant, flops_per_image).images_per_second / 3600
