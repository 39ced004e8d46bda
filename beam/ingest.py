"""The Beam graph: listing -> split and shard of each name -> shards -> manifest."""

import os
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.pvalue import AsList, AsSingleton

from beam import duplicates, finish, hashing, progress, shards, sources
from beam.carry import CarriedObject, carried
from beam.items import Item
from beam.options import BuildError, BuildOptions, image_settings
from pipeline.data import record

_ALL = 2**64  # split hashes lie below


def build(pipeline: beam.Pipeline, options: BuildOptions, source: sources.Source) -> None:
    """Adds the whole build to `pipeline`."""
    task = make_task(options, source)
    given = read_classes(options.classes) if options.classes else source.classes
    items = (
        pipeline
        | "Source" >> beam.Create(source.parts)
        | "Spread" >> beam.Reshuffle()
        | "List" >> beam.FlatMap(carried(list_items), source._replace(parts=[]))
    )
    if given is None:
        labels = items | "Labels" >> beam.FlatMap(carried(labels_of))
        found = labels | "Labels found" >> beam.CombineGlobally(Union())
        classes = found | "Classes" >> beam.Map(carried(sources.sorted_classes), source.kind)
    else:
        classes = pipeline | "Classes" >> beam.Create([given])
    indices = classes | "Indices" >> beam.Map(carried(indices_of))
    held_out = _held_out(items, options)
    names = items | "Name" >> beam.Map(carried(to_name), task, AsSingleton(indices), AsSingleton(held_out))
    every = pipeline | "Shards" >> beam.Create(
        [((split, index), None) for split, count in task.shards.items() for index in range(count)]
    )
    names = (names, every) | "Names" >> beam.Flatten()
    reference = _reference(pipeline, options)
    pairs = _pairs(names, task, held_out, reference)
    results = (
        {"names": names, "pairs": pairs}
        | "Shuffle names" >> beam.CoGroupByKey()
        | "Write" >> beam.Map(carried(write_shard), task, reference)
    )
    end = pipeline | "End" >> beam.Create([task])
    end | "Finish" >> beam.Map(carried(finish.finish), AsSingleton(classes), given is not None, AsList(results))


def make_task(options: BuildOptions, source: sources.Source) -> shards.Task:
    """What the flags say about every shard."""
    return shards.Task(
        name=options.name,
        output_dir=options.output_dir,
        label_kind=record.MULTI_LABEL if source.is_multi_label else record.SINGLE_LABEL,
        shards={shards.TRAIN: options.shards} | validation_shards(options),
        images=image_settings(options),
        policy=options.duplicates,
        distance=options.duplicate_distance,
    )


def validation_shards(options: BuildOptions) -> dict[str, int]:
    """Shards of the validation split: about as large as those of the train split; none if nothing is held out."""
    if options.validation_examples:
        return {shards.VALIDATION: min(options.shards, 1 + options.validation_examples // 4096)}
    fraction = options.validation_fraction
    return {shards.VALIDATION: max(1, round(options.shards * fraction / (1 - fraction)))} if fraction else {}


def read_classes(path: str) -> list[str]:
    """Class names in label order, one a line."""
    try:
        with open(path, encoding="utf-8") as file:
            names = [line.rstrip("\r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"--classes={path}: {error}; expected a text file with a class name a line.") from error
    if not names or "" in names or len(set(names)) != len(names):
        raise BuildError(f"--classes={path}: expected class names, one a line, none empty and none twice.")
    return names


def list_items(part: bytes, source: sources.Source) -> Iterator[tuple]:
    """Lists one part of the source, counting for the progress line."""
    for item in sources.items(part, source):
        progress.count("listed", 1)
        yield item


def labels_of(item: Item) -> Iterable:
    """The class names of an item."""
    return item.labels


def indices_of(classes: list[str]) -> dict:
    """Class name to label."""
    return {name: index for index, name in enumerate(classes)}


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
        bound = int(options.validation_fraction * _ALL)
        return items.pipeline | "Held out" >> beam.Create([bound])
    return (
        items
        | "Split hashes" >> beam.Map(carried(split_hash_of))
        | "Smallest" >> beam.CombineGlobally(Smallest(count + 1))
        | "Bound" >> beam.Map(carried(bound_of), count)
    )


def split_hash_of(item: Item) -> int:
    """The hash that decides whether an item is held out."""
    return shards.split_hash(item.key)


def bound_of(smallest: list[int], count: int) -> int:
    """The hash below which exactly `count` keys lie, of the `count + 1` smallest hashes."""
    if len(smallest) <= count:
        raise BuildError(
            f"--validation_examples={count}: the source lists only {len(smallest)} images, which would leave "
            "none to train on: hold out fewer."
        )
    return smallest[count]


def to_name(item: Item, task: shards.Task, indices: dict, held_out: int) -> tuple:
    """((split, shard), name): class names become indices, the key's hashes say where it goes."""
    labels, refusal = (), item.refusal
    try:
        labels = tuple(indices[label] for label in item.labels)
    except KeyError as error:
        refusal = refusal or ("unknown_label", f"{error.args[0]!r} is not among the {len(indices)} classes")
    if task.label_kind == record.SINGLE_LABEL and len(labels) != 1:
        refusal = refusal or ("bad_row", f"{len(labels)} labels in a source of one label an image")
    return place(item.key, task, held_out), tuple(item._replace(labels=labels, refusal=refusal))


def _reference(pipeline: beam.Pipeline, options: BuildOptions) -> AsSingleton | None:
    """The hashes of the evaluation sets, as a side input; None if there are none."""
    if not options.remove_duplicates_of:
        return None
    parts = [part for path in options.remove_duplicates_of for part in hashing.parts(path)]
    return AsSingleton(
        pipeline
        | "Evaluation sets" >> beam.Create(parts)
        | "Spread them" >> beam.Reshuffle()
        | "Their hashes" >> beam.FlatMap(carried(hashing.of_part))
        | "Together" >> beam.combiners.ToList()
        | "Index" >> beam.Map(carried(duplicates.Reference), options.duplicate_distance)
    )


def _pairs(names, task: shards.Task, held_out, reference) -> beam.PCollection:
    """((split, shard), pair) for every image that is a duplicate of another in the set."""
    if task.policy == "off":
        return names.pipeline | "No pairs" >> beam.Create([])
    distance, both = task.distance, task.policy == "drop"
    rows = (
        names
        | "Shuffle names to hash" >> beam.GroupByKey()
        | "Hash" >> beam.FlatMap(carried(hash_shard), task, reference)
    )
    alike = (
        rows
        | "By hash" >> beam.Map(carried(by_hash))
        | "Same hash" >> beam.GroupByKey()
        | "Pairs of one hash" >> beam.FlatMap(carried(duplicates.same_hash), distance, both)
    )
    pairs = [alike | "Their pairs" >> beam.FlatMap(carried(only), "pair")]
    if distance > 0:
        pairs.append(
            alike
            | "First of a hash" >> beam.FlatMap(carried(only), "first")
            | "Bands" >> beam.FlatMap(carried(duplicates.tables), distance)
            | "Same bands" >> beam.GroupByKey()
            | "Near pairs" >> beam.FlatMap(carried(duplicates.near), distance, both)
        )
    return (
        pairs
        | "All pairs" >> beam.Flatten()
        | "Place pairs" >> beam.Map(carried(place_pair), task, AsSingleton(held_out))
    )


def hash_shard(group: tuple, task: shards.Task, reference) -> Iterator[duplicates.Row]:
    """The hashes of one shard's usable images."""
    (split, index), names = group
    yield from hashing.of_listing(task, split, index, _names(names), reference)


def by_hash(row: duplicates.Row) -> tuple[int, duplicates.Row]:
    """Keyed by perceptual hash."""
    return row.perceptual, row


def only(tagged: tuple[str, object], tag: str) -> Iterator:
    """The values with a tag."""
    if tagged[0] == tag:
        yield tagged[1]


def place_pair(pair: duplicates.Pair, task: shards.Task, held_out: int) -> tuple:
    """((split, shard), pair): to where the pair's first image is written."""
    return place(pair.image.key, task, held_out), pair


def place(key: bytes, task: shards.Task, held_out: int) -> tuple[str, int]:
    """(split, shard) of a key."""
    split = shards.VALIDATION if shards.split_hash(key) < held_out else shards.TRAIN
    return split, shards.position(key) % task.shards[split]


def write_shard(group: tuple, task: shards.Task, reference) -> tuple:
    """Builds one shard; returns (split, shard number, what the end of the build needs of it)."""
    (split, index), found = group
    pairs = (duplicates.Pair.of(pair) for pair in found["pairs"])
    stats = shards.build(task, split, index, _names(found["names"]), pairs, reference)
    return split, index, finish.summary(stats)


def _names(group: Iterable) -> Iterator[shards.Name]:
    return (shards.Name(*name) for name in group if name is not None)


def remove_manifest(output_dir: str) -> None:
    """Removes the manifest of an earlier build: from here until the new one, there is no record set."""
    path = os.path.join(output_dir, "manifest.json")
    if os.path.exists(path):
        os.remove(path)
