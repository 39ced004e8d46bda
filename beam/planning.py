"""What depends on the whole listing: which keys are held out, and how many shards there are."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from beam import shards
from beam.errors import BuildError
from beam.examples import SourceExample
from beam.options import BuildOptions, image_settings
from beam.splits import TRAIN, VALIDATION
from pipeline.data import record

_ALL = 2**64  # split hashes are below it
_RECORD_OVERHEAD = 120  # bytes of a record beside its image, about


class Totals(NamedTuple):
    """What is known of the whole listing.

    Attributes:
      sizes: split to images, images of known size, bytes of these.
      labels: the class names, if they are asked for.
    """

    sizes: dict[str, tuple[int, int, int]]
    labels: set[str]


class ListingTotals(beam.CombineFn):
    """The `Totals` of listed examples."""

    def __init__(self, with_labels: bool):
        self.with_labels = with_labels

    def create_accumulator(self) -> tuple[dict, set]:
        return {}, set()

    def add_input(self, accumulator: tuple[dict, set], example: SourceExample) -> tuple[dict, set]:
        sizes, labels = accumulator
        images, sized, size = sizes.get(example.split, (0, 0, 0))
        sizes[example.split] = images + 1, sized + (example.size >= 0), size + max(example.size, 0)
        if self.with_labels:
            labels.update(example.labels)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tuple[dict, set]]) -> tuple[dict, set]:
        sizes: dict[str, tuple] = {}
        labels: set[str] = set()
        for other_sizes, other_labels in accumulators:
            for split, counts in other_sizes.items():
                sizes[split] = tuple(map(sum, zip(counts, sizes.get(split, (0, 0, 0)), strict=True)))
            labels |= other_labels
        return sizes, labels

    def extract_output(self, accumulator: tuple[dict, set]) -> Totals:
        return Totals(*accumulator)


def build_spec(
    listed: beam.PCollection, totals: beam.PCollection, options: BuildOptions, folder: str, is_multi_label: bool
) -> beam.PCollection:
    """The one `shards.BuildSpec` of the build."""
    flags = shards.BuildSpec(
        name=options.name,
        output_dir=folder,
        label_kind=record.MULTI_LABEL if is_multi_label else record.SINGLE_LABEL,
        image_settings=image_settings(options),
        shards={TRAIN: options.shards},
        duplicate_policy=options.duplicates,
        duplicate_distance=options.duplicate_distance,
        retry_rejected=options.retry_rejected,
    )
    examples, fraction = options.validation_examples, options.validation_fraction
    held_out: AsSingleton | int = int(fraction * _ALL)
    if examples:
        train = listed | "Train split" >> beam.Filter(lambda example: example.split == TRAIN)
        hashes = train | "Split hashes" >> beam.Map(lambda example: shards.split_hash(example.key))
        smallest = hashes | "Smallest" >> beam.CombineGlobally(Smallest(examples + 1))
        held_out = AsSingleton(smallest | "Bound" >> beam.Map(bound_of, examples))
    return totals | "Spec" >> beam.Map(complete, flags, examples, fraction, options.shard_mib, held_out)


def complete(
    totals: Totals,
    flags: shards.BuildSpec,
    examples: int,
    fraction: float,
    mib: int,
    held_out: int,
) -> shards.BuildSpec:
    """The spec of the flags, with what the listing decides: the held-out keys, and the number of shards.

    Shards of splits that the source names are about as large as those of train (without it, of the largest).

    Raises:
      BuildError: the flags do not fit the splits that are listed, or the sizes of images are needed and not known.
    """
    sizes = totals.sizes or {TRAIN: (0, 0, 0)}
    if examples or fraction:
        flag = f"--validation_examples={examples}" if examples else f"--validation_fraction={fraction}"
        if VALIDATION in sizes:
            raise BuildError(
                f"{flag}: the input has a validation split of its own, of {sizes[VALIDATION][0]:,} images: remove the "
                "flag, or read the input with --splits=none."
            )
        if TRAIN not in sizes:
            raise BuildError(f"{flag}: the input has no train split to hold out from: remove the flag.")
    main = TRAIN if TRAIN in sizes else max(sizes, key=lambda split: (sizes[split], split))
    count, sized, size = sizes[main]
    number = flags.shards[TRAIN]
    if mib:
        if not sized:
            raise BuildError(
                "--shard_mib needs the sizes of the images, and this source does not tell them: give --shards."
            )
        estimate = size * count / sized + count * _RECORD_OVERHEAD
        part = examples / count if examples else fraction
        number = max(1, round(estimate * (1 - part) / (mib << 20)))
    numbers = {split: max(1, round(number * listed / count)) for split, (listed, _, _) in sizes.items() if count}
    numbers |= {main: number} | validation_shards(number, examples, fraction)
    return dataclasses.replace(flags, shards=numbers, held_out=held_out)


def validation_shards(train: int, examples: int, fraction: float) -> dict[str, int]:
    """Shards of the validation split; none if nothing is held out.

    A fraction is in shards of the size of those of the train split; `examples` are in shards of 4,096, of which there
    are no more than of the train split.
    """
    if examples:
        return {VALIDATION: min(train, 1 + examples // 4096)}
    return {VALIDATION: max(1, round(train * fraction / (1 - fraction)))} if fraction else {}


class Smallest(beam.CombineFn):
    """The sorted `count` smallest distinct values, in memory for twice as many."""

    def __init__(self, count: int):
        self.count = count

    def create_accumulator(self) -> set[int]:
        return set()

    def add_input(self, accumulator: set[int], value: int) -> set[int]:
        accumulator.add(value)
        return self._cut(accumulator) if len(accumulator) > 2 * self.count + 1000 else accumulator

    def merge_accumulators(self, accumulators: Iterable[set[int]]) -> set[int]:
        merged: set[int] = set()
        for accumulator in accumulators:
            merged = self._cut(merged | accumulator)
        return merged

    def extract_output(self, accumulator: set[int]) -> list[int]:
        return sorted(accumulator)[: self.count]

    def _cut(self, accumulator: set[int]) -> set[int]:
        return set(sorted(accumulator)[: self.count])


def bound_of(smallest: list[int], count: int) -> int:
    """The hash below which exactly `count` keys are, of the `count + 1` smallest hashes."""
    if len(smallest) <= count:
        raise BuildError(
            f"--validation_examples={count}: the source lists only {len(smallest)} images, which would leave "
            "none to train on: hold out fewer."
        )
    return smallest[count]
