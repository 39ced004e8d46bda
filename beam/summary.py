"""What a build says at its end: images and classes of each split, and what a person should know before training."""

import dataclasses
import json
import os
from collections.abc import Iterable

import numpy as np

from beam import shards, splits
from pipeline import files
from pipeline.data.manifest import Manifest, Split

FILE = "summary.json"
_NAMED = 5  # names in a line
_REASONS = 3  # of refusals, the most frequent ones


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts that the manifest does not have.

    Attributes:
      images_per_class: split to the number of images of each class, in label order.
      shared: `SPLIT and SPLIT` to the number of images, by their bytes, that are in both.
    """

    images_per_class: dict[str, list[int]]
    shared: dict[str, int]

    @classmethod
    def of(cls, classes: int, results: Iterable[shards.ShardResult], shared: dict[tuple[str, str], int]) -> "Summary":
        """The counts of a build from those of its shards."""
        counts: dict[str, np.ndarray] = {}
        for split, _, stats in results:
            of_split = counts.setdefault(split, np.zeros(classes, np.int64))
            for label, count in stats["classes"].items():
                of_split[int(label)] += count
        return cls(
            {split: of_split.tolist() for split, of_split in counts.items()},
            {f"{one} and {other}": count for (one, other), count in sorted(shared.items())},
        )


def write(folder: str, summary: Summary) -> None:
    """Writes `summary.json` into the folder of a record set."""
    content = json.dumps(dataclasses.asdict(summary), sort_keys=True) + "\n"
    files.write_atomically(os.path.join(folder, FILE), content, several_writers=True)


def read(folder: str) -> Summary:
    """Reads what `write` wrote."""
    with files.opened(os.path.join(folder, FILE), "r") as file:
        return Summary(**json.load(file))


def lines(record_set: Manifest, summary: Summary) -> list[str]:
    """The summary for a person to read, a fact per line."""
    counts = {name: np.array(summary.images_per_class[name]) for name in splits.in_order(record_set.splits)}
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
    for pair, count in summary.shared.items():
        text.append(
            f"{_number(count, 'image')} with the same bytes in {pair}: --duplicates=report names them. To leave them "
            f"out of {pair.split()[0]}, build {pair.split()[-1]} as a set of its own, and the rest with "
            "--remove_duplicates_of=THAT_SET."
        )
    return text


def _split_line(name: str, split: Split, counts: np.ndarray) -> str:
    """Images and classes of a split, and what was refused."""
    line = f"{name}: {_number(split.written, 'image')} of {_number(int(np.count_nonzero(counts)), 'class')}"
    if not split.rejected:
        return line
    most = sorted(split.rejected.items(), key=lambda item: (-item[1], item[0]))[:_REASONS]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in most)
    more = ", ..." if len(split.rejected) > _REASONS else ""
    return f"{line}; {split.listed - split.written:,} of {split.listed:,} refused ({reasons}{more})"


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
