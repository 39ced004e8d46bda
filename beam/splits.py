"""The names of splits: those of a record set, and what people call them."""

from collections.abc import Iterable

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
    "testing": TEST,
}


def named(name: str) -> str | None:
    """The split that a folder, a column's value or a part of a file's name stands for, in any case; None for others."""
    return NAMES.get(name.strip().lower())


def in_order(splits: Iterable[str]) -> list[str]:
    """Splits as a person expects them: train, validation, test."""
    return sorted(splits, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
