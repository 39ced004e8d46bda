"""What a build says at its end: images and classes of each split, and what a person should know before training."""

import collections
import os
from collections.abc import Iterable

import numpy as np

from beam import shards, splits
from pipeline.data.manifest import Manifest, Split
from pipeline.data.statistics import Statistics

_NAMED = 5  # names in a line
_REASONS = 3  # of refusals, the most frequent ones


def statistics_of(
    classes: int, results: Iterable[shards.ShardResult], shared: dict[tuple[str, str], int]
) -> Statistics:
    """The counts of a build from those of its shards."""
    counts: dict[str, np.ndarray] = {}
    sides: collections.Counter[str] = collections.Counter()
    for split, _, stats in results:
        of_split = counts.setdefault(split, np.zeros(classes, np.int64))
        for label, count in stats["classes"].items():
            of_split[int(label)] += count
        sides.update(stats["sides"])
    return Statistics(
        {split: of_split.tolist() for split, of_split in counts.items()},
        {f"{one} and {other}": count for (one, other), count in sorted(shared.items())},
        dict(sides),
    )


def lines(record_set: Manifest, statistics: Statistics, held_out: bool, duplicates: str) -> list[str]:
    """The end of a build for a person to read, a fact per line.

    Args:
      record_set: what was built.
      statistics: its counts.
      held_out: whether the validation split was taken out of the source's train split.
      duplicates: the flag's value.
    """
    counts = {name: np.array(statistics.images_per_class[name]) for name in splits.in_order(record_set.splits)}
    main = next(iter(counts))
    text = [_split_line(name, record_set.splits[name], of_split) for name, of_split in counts.items()]
    text += _rare_classes(main, counts[main], record_set.classes)
    if absent := [record_set.classes[label] for label in np.flatnonzero(sum(counts.values()) == 0)]:
        text.append(f"No image at all: {_number(len(absent), 'class')} ({_some(absent)}).")
    for name in list(counts)[1:]:
        for one, other in ((name, main), (main, name)):
            missing = np.flatnonzero((counts[one] > 0) & (counts[other] == 0))
            if missing.size:
                names = _some([record_set.classes[label] for label in missing])
                text.append(f"Classes differ: {_number(missing.size, 'class')} of {one} not in {other} ({names}).")
    named = "--duplicates=report names them" if duplicates == "off" else "duplicates.jsonl names them"
    for pair, count in statistics.shared.items():
        one, other = pair.split(" and ")
        advice = f"To leave them out of {one}, build {other} as a set of its own, and the rest with "
        advice += "--remove_duplicates_of=THAT_SET."
        if held_out and {one, other} == {splits.TRAIN, splits.VALIDATION}:
            advice = "To leave one of each, build again with --duplicates=keep_first --replace."
        text.append(f"{_number(count, 'image')} with the same bytes in {pair}: {named}. {advice}")
    return text


def next_step(record_set: Manifest, folder: str) -> str:
    """What to do with a record set that was built."""
    if splits.TRAIN not in record_set.splits:
        split = splits.in_order(record_set.splits)[-1]
        return (
            "Next: evaluate a run on it: python pipeline/main.py --model_dir=RUN --task=evaluate "
            f"--split={split} --gin_param='DATA_DIR=\"{folder}\"'"
        )
    if splits.VALIDATION not in record_set.splits:
        return "Next: training needs a validation split too; --validation_fraction=0.1 holds a tenth of the images out."
    run = os.path.join("runs", os.path.basename(os.path.normpath(folder)))
    return (
        "Next: python pipeline/main.py --gin_file=gin/finetune_own.gin "
        f"--gin_param='DATA_DIR=\"{folder}\"' --model_dir={run}"
    )


def _split_line(name: str, split: Split, counts: np.ndarray) -> str:
    """Images and classes of a split, and what was refused."""
    line = f"{name}: {_number(split.written, 'image')} of {_number(int(np.count_nonzero(counts)), 'class')}"
    if not split.rejected:
        return line
    most = sorted(split.rejected.items(), key=lambda item: (-item[1], item[0]))[:_REASONS]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in most)
    more = ", ..." if len(split.rejected) > _REASONS else ""
    refused = f"{split.listed - split.written:,} of {split.listed:,} refused ({reasons}{more})"
    return f"{line}; {refused}; rejected.jsonl names them"


def _rare_classes(name: str, counts: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """The smallest class of a split, and those of one image."""
    present = np.flatnonzero(counts)
    smallest = int(present[counts[present].argmin()])
    text = [f"The smallest class of {name} is {classes[smallest]!r} with {_number(int(counts[smallest]), 'image')}."]
    if single := [classes[label] for label in np.flatnonzero(counts == 1)]:
        text.append(f"One image only: {_number(len(single), 'class')} of {name} ({_some(single)}).")
    return text


def _number(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
