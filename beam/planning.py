"""What depends on the whole listing: which keys are held out, and how many shards there are."""

import dataclasses
from collections.abc import Iterable

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from beam import shards
from beam.errors import BuildError
from beam.options import BuildOptions, image_settings
from pipeline.data import record

_ALL = 2**64  # split hashes are below it
_RECORD_OVERHEAD = 120  # bytes of a record beside its image, about


def listing_size(listed: beam.PCollection) -> beam.PCollection:
    """One tuple: images, images of known size, bytes of these."""
    add = beam.combiners.TupleCombineFn(sum, sum, sum)
    sizes = listed | "Sizes" >> beam.Map(lambda example: (1, int(example.size >= 0), max(example.size, 0)))
    return sizes | "Total" >> beam.CombineGlobally(add)


def build_spec(
    listed: beam.PCollection, listing_size: beam.PCollection, options: BuildOptions, is_multi_label: bool
) -> beam.PCollection:
    """The one `shards.BuildSpec` of the build."""
    flags = shards.BuildSpec(
        name=options.name,
        output_dir=options.output_dir,
        label_kind=record.MULTI_LABEL if is_multi_label else record.SINGLE_LABEL,
        image_settings=image_settings(options),
        shards={shards.TRAIN: options.shards},
        duplicate_policy=options.duplicates,
        duplicate_distance=options.duplicate_distance,
        retry_rejected=options.retry_rejected,
    )
    examples, fraction = options.validation_examples, options.validation_fraction
    held_out: AsSingleton | int = int(fraction * _ALL)
    if examples:
        hashes = listed | "Split hashes" >> beam.Map(lambda example: shards.split_hash(example.key))
        smallest = hashes | "Smallest" >> beam.CombineGlobally(Smallest(examples + 1))
        held_out = AsSingleton(smallest | "Bound" >> beam.Map(bound_of, examples))
    return listing_size | "Spec" >> beam.Map(complete, flags, examples, fraction, options.shard_mib, held_out)


def complete(
    listing_size: tuple[int, int, int],
    flags: shards.BuildSpec,
    examples: int,
    fraction: float,
    mib: int,
    held_out: int,
) -> shards.BuildSpec:
    """The spec of the flags, with what the listing decides: the held-out keys, and the number of shards."""
    train = flags.shards[shards.TRAIN]
    if mib:
        count, sized, size = listing_size
        if not sized:
            raise BuildError(
                "--shard_mib needs the sizes of the images, and this source does not tell them: give --shards."
            )
        estimate = size * count / sized + count * _RECORD_OVERHEAD
        part = examples / count if examples else fraction
        train = max(1, round(estimate * (1 - part) / (mib << 20)))
    numbers = {shards.TRAIN: train} | validation_shards(train, examples, fraction)
    return dataclasses.replace(flags, shards=numbers, held_out=held_out)


def validation_shards(train: int, examples: int, fraction: float) -> dict[str, int]:
    """Shards of the validation split: about as large as those of the train split; none if nothing is held out."""
    if examples:
        return {shards.VALIDATION: min(train, 1 + examples // 4096)}
    return {shards.VALIDATION: max(1, round(train * fraction / (1 - fraction)))} if fraction else {}


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
