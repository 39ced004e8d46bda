"""What must be known of the whole listing before names are shuffled: what is held out, and how many shards."""

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from beam import shards, sources
from beam.carry import CarriedObject, carried
from beam.items import Item
from beam.options import BuildError, BuildOptions, image_settings
from pipeline.data import record

_ALL = 2**64  # split hashes lie below
_RECORD_OVERHEAD = 120  # bytes of a record beside its image, about


def total(items: beam.PCollection) -> beam.PCollection:
    """One tuple: images, images of known size, bytes of these."""
    return items | "Sizes" >> beam.Map(carried(size_of)) | "Total" >> beam.CombineGlobally(Total())


def task(
    items: beam.PCollection, total: beam.PCollection, options: BuildOptions, source: sources.Source
) -> beam.PCollection:
    """The one `shards.Task` of the build."""
    flags = shards.Task(
        name=options.name,
        output_dir=options.output_dir,
        label_kind=record.MULTI_LABEL if source.is_multi_label else record.SINGLE_LABEL,
        images=image_settings(options),
        shards={shards.TRAIN: options.shards},
        policy=options.duplicates,
        distance=options.duplicate_distance,
        retry=options.retry_rejected,
    )
    asked = options.validation_examples, options.validation_fraction, options.shard_mib
    started = items.pipeline | "Flags" >> beam.Create([flags])
    return started | "Task" >> beam.Map(
        carried(complete), *asked, AsSingleton(_held_out(items, options)), AsSingleton(total)
    )


def complete(flags: shards.Task, examples: int, fraction: float, mib: int, held_out: int, total: tuple) -> shards.Task:
    """The task with what the listing decides: the bound of the held-out keys, and the number of shards."""
    train = flags.shards[shards.TRAIN]
    if mib:
        count, known, size = total
        if not known:
            raise BuildError(
                "--shard_mib needs the sizes of the images, and this source does not tell them: give --shards."
            )
        size = size * count / known + count * _RECORD_OVERHEAD
        part = examples / count if examples else fraction
        train = max(1, round(size * (1 - part) / (mib << 20)))
    numbers = {shards.TRAIN: train} | validation_shards(train, examples, fraction)
    return flags._replace(shards=numbers, held_out=held_out)


def validation_shards(train: int, examples: int, fraction: float) -> dict[str, int]:
    """Shards of the validation split: about as large as those of the train split; none if nothing is held out."""
    if examples:
        return {shards.VALIDATION: min(train, 1 + examples // 4096)}
    return {shards.VALIDATION: max(1, round(train * fraction / (1 - fraction)))} if fraction else {}


def size_of(item: Item) -> int:
    """Bytes of an item's image, -1 if unknown."""
    return item.size


class Total(CarriedObject, beam.CombineFn):
    """(images, images of known size, bytes of these)."""

    def create_accumulator(self):
        return 0, 0, 0

    def add_input(self, accumulator, size):
        count, known, total = accumulator
        return count + 1, known + (size >= 0), total + max(size, 0)

    def merge_accumulators(self, accumulators):
        return tuple(map(sum, zip(*accumulators, strict=True)))

    def extract_output(self, accumulator):
        return accumulator


class Union(CarriedObject, beam.CombineFn):
    """The sorted list of distinct values."""

    def create_accumulator(self):
        return set()

    def add_input(self, accumulator, value):
        accumulator.add(value)
        return accumulator

    def merge_accumulators(self, accumulators):
        return set().union(*accumulators)

    def extract_output(self, accumulator):
        return sorted(accumulator)


class Smallest(Union):
    """The sorted `count` smallest distinct values, in memory for twice as many."""

    def __init__(self, count: int):
        self.arguments = (count,)
        self.count = count

    def add_input(self, accumulator, value):
        accumulator.add(value)
        return self._cut(accumulator) if len(accumulator) > 2 * self.count + 1000 else accumulator

    def merge_accumulators(self, accumulators):
        merged = set()
        for accumulator in accumulators:
            merged = self._cut(merged | accumulator)
        return merged

    def extract_output(self, accumulator):
        return sorted(accumulator)[: self.count]

    def _cut(self, accumulator):
        return set(sorted(accumulator)[: self.count])


def _held_out(items: beam.PCollection, options: BuildOptions) -> beam.PCollection:
    """One number: keys whose `split_hash` is below it are held out."""
    count = options.validation_examples
    if not count:
        # The bound does not fit Beam's coder of integers, which is signed, so it is made where it is used.
        fraction = items.pipeline | "Fraction" >> beam.Create([options.validation_fraction])
        return fraction | "Held out" >> beam.Map(carried(bound_of_fraction))
    return (
        items
        | "Split hashes" >> beam.Map(carried(split_hash_of))
        | "Smallest" >> beam.CombineGlobally(Smallest(count + 1))
        | "Bound" >> beam.Map(carried(bound_of), count)
    )


def split_hash_of(item: Item) -> int:
    """The hash that decides whether an item is held out."""
    return shards.split_hash(item.key)


def bound_of_fraction(fraction: float) -> int:
    """The hash below which `fraction` of all hashes lie."""
    return int(fraction * _ALL)


def bound_of(smallest: list[int], count: int) -> int:
    """The hash below which exactly `count` keys lie, of the `count + 1` smallest hashes."""
    if len(smallest) <= count:
        raise BuildError(
            f"--validation_examples={count}: the source lists only {len(smallest)} images, which would leave "
            "none to train on: hold out fewer."
        )
    return smallest[count]
