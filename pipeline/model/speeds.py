"""The cost model: how fast a TPU-v4 core trains each variant, and so what a run costs in core-hours."""

import dataclasses
import json
import math
import os

from pipeline.model import cost, variants

RESOLUTION, CLASSES = 224, 30_000  # of the study's pre-training
FINETUNING_RESOLUTION, FINETUNING_CLASSES = 384, 1000
STUDY_IMAGES = 4e9  # in an epoch of JFT-4B, "about 4 billion"


class UnknownSpeedError(ValueError):
    """No speed is known for a network of this size."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """How many images one TPU-v4 core takes through a forward and a backward pass per second, and the number's source.

    A step of SAM takes two such passes.
    """

    images_per_second: float
    source: str

    def core_hours(self, images: float, passes: int = 1) -> float:
        """TPU-v4 core-hours of `images` that take so many forward and backward passes each, two with SAM."""
        return passes * images / self.images_per_second / 3600


def _of_budget(epochs: float, core_hours: float, source: str) -> Speed:
    return Speed(
        epochs * STUDY_IMAGES / (core_hours * 3600),
        f"{source} {core_hours:g} core-hours for {epochs:g} epochs of about 4 billion images (arXiv 2310.16764)",
    )


def read_table(path: str, section: str = "variants") -> dict[str, Speed]:
    """The speeds of a table from `make tpu-table`; none where there is no such file or section.

    Args:
      path: of the file.
      section: 'variants' for pre-training at 224 pixels, 'finetuning' for fine-tuning at 384, 'models' for those of a
        study.
    """
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        rows = json.load(file).get(section, {})
    return {
        name: Speed(
            row["images_per_second_per_core"] * row.get("gradient_passes", 1),
            f"estimated by the TPU compiler (libtpu {row['versions']['libtpu']}, {row['date']}) for our step of "
            f"{row['replica_batch']} images a core of {row['topology']}",
        )
        for name, row in rows.items()
    }


TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tpu_v4_speeds.json")
# Epochs and core-hours of the two ends of the paper's range of compute, 0.4k to 110k. That the lower end is F0 after a
# quarter of an epoch, its smallest run, is inferred; the upper end is stated.
STUDY_BUDGETS = {"F0": (0.25, 400), "F7+": (8, 110_000)}
STUDY_SPEEDS: dict[str, Speed] = {
    "F0": _of_budget(*STUDY_BUDGETS["F0"], "inferred from the least compute reported,"),
    "F7+": _of_budget(*STUDY_BUDGETS["F7+"], "reported"),
}


def choose_speeds(table: dict[str, Speed]) -> dict[str, Speed]:
    """The table's speeds where it spans the family, the study's otherwise: one is not to be mixed with the other,
    since the authors' step and ours differ."""
    return table if STUDY_SPEEDS.keys() <= table.keys() else STUDY_SPEEDS


SPEEDS: dict[str, Speed] = choose_speeds(read_table(TABLE))
FINETUNING_SPEEDS: dict[str, Speed] = {} if SPEEDS is STUDY_SPEEDS else read_table(TABLE, "finetuning")


def training_flops(variant: str, resolution: int = RESOLUTION, num_classes: int = CLASSES) -> int:
    """FLOPs of a forward and a backward pass of an image: two a multiply-add, and three times a forward pass."""
    return 6 * cost.multiply_adds(variant, resolution, num_classes)


def speed(variant: str, flops_per_image: float | None = None) -> Speed:
    """Images per second on a TPU-v4 core.

    An entry of the tables for these FLOPs; else the variant's nearest entry, scaled by FLOPs; else, for a variant that
    has none, log-log interpolation by FLOPs between the entries of `SPEEDS`. The source says which.

    Args:
      variant: of the NFNet family.
      flops_per_image: of a forward and a backward pass; at 224 pixels and 30k classes where None.

    Raises:
      UnknownSpeedError: the variant has no entry, and the FLOPs are outside the range of the entries; or it is of
        another family, whose speed does not follow from NFNets'.
    """
    if variant not in variants.VARIANTS:
        raise UnknownSpeedError(
            f"No cost in TPU-v4 core-hours is known for {variant}, which is no NFNet: estimate the models of the study "
            "with `scaling_study.py estimate`, or use --unit=flops or --unit=seconds."
        )
    work = training_flops(variant) if flops_per_image is None else flops_per_image
    if entries := _entries(variant):
        nearest = min(entries, key=lambda flops: abs(math.log(flops / work)))
        if math.isclose(work, nearest, rel_tol=0.02):
            return entries[nearest]
        source = f"scaled by FLOPs, {nearest:.3g} to {work:.3g} an image, from what is {entries[nearest].source}"
        return Speed(entries[nearest].images_per_second * nearest / work, source)
    return _interpolated(variant, work)


def _entries(variant: str) -> dict[float, Speed]:
    """The speeds known of a variant, by FLOPs of an image."""
    tables = ((SPEEDS, RESOLUTION, CLASSES), (FINETUNING_SPEEDS, FINETUNING_RESOLUTION, FINETUNING_CLASSES))
    return {training_flops(variant, *setting): table[variant] for table, *setting in tables if variant in table}


def _interpolated(variant: str, work: float) -> Speed:
    entries = sorted((training_flops(name), entry.images_per_second, name) for name, entry in SPEEDS.items())
    if not 0.98 * entries[0][0] <= work <= 1.02 * entries[-1][0]:
        raise UnknownSpeedError(
            f"No cost in TPU-v4 core-hours is known for {variant} at {work:.3g} FLOPs an image: speeds are known from "
            f"{entries[0][0]:.3g} ({entries[0][2]}) to {entries[-1][0]:.3g} ({entries[-1][2]}). Use --unit=flops or "
            "--unit=seconds, or estimate the models of the study with `scaling_study.py estimate`."
        )
    upper = next((i for i in range(1, len(entries)) if work <= entries[i][0]), len(entries) - 1)
    (low, slow, low_name), (high, fast, high_name) = entries[upper - 1], entries[upper]
    share = math.log(work / low) / math.log(high / low)
    return Speed(slow * (fast / slow) ** share, f"estimated: interpolated by FLOPs between {low_name} and {high_name}")


def core_hours(variant: str, images: float, flops_per_image: float | None = None, passes: int = 1) -> float:
    """TPU-v4 core-hours of training.

    Args:
      variant: of the NFNet family.
      images: that the network sees; each view of an example counts.
      flops_per_image: as of `speed`.
      passes: forward and backward passes of each image, two with SAM.

    Raises:
      UnknownSpeedError: no speed is known.
    """
    return speed(variant, flops_per_image).core_hours(images, passes)
