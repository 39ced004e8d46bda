"""The Beam graph: listing -> split and shard of each name -> shards -> manifest."""

import os
from collections.abc import Iterable, Iterator

import apache_beam as beam

from beam import finish, progress, shards, sources
from beam.options import BuildError, BuildOptions, image_settings
from pipeline.data import record

_ALL = 2**64  # split hashes lie below


def build(pipeline: beam.Pipeline, options: BuildOptions) -> beam.PCollection:
    """Adds the whole build to `pipeline`; returns a collection of one element, `finish.finish`'s summary."""
    task = make_task(options)
    given = read_classes(options.classes) if options.classes else None
    items = (
        pipeline
        | "Source" >> beam.Create(sources.parts(options.input))
        | "Spread" >> beam.Reshuffle()
        | "List" >> beam.FlatMap(list_items, options.input)
    )
    if given is None:
        found = items | "Labels" >> beam.FlatMap(lambda item: item.labels) | "Classes" >> beam.CombineGlobally(Union())
    else:
        found = pipeline | "Classes" >> beam.Create([given])
    held_out = _held_out(items, options)
    names = items | "Name" >> beam.ParDo(
        ToName(task), beam.pvalue.AsSingleton(found), beam.pvalue.AsSingleton(held_out)
    )
    every = pipeline | "Shards" >> beam.Create(
        [((split, index), None) for split, count in task.shards.items() for index in range(count)]
    )
    results = (
        (names, every) | beam.Flatten() | "Shuffle names" >> beam.GroupByKey() | "Write" >> beam.Map(write_shard, task)
    )
    return (
        pipeline
        | "End" >> beam.Create([None])
        | "Finish"
        >> beam.Map(
            lambda _, results, classes: finish.finish(task, classes, given is not None, results),
            beam.pvalue.AsList(results),
            beam.pvalue.AsSingleton(found),
        )
    )


def make_task(options: BuildOptions) -> shards.Task:
    """What the flags say about every shard."""
    return shards.Task(
        name=options.name,
        output_dir=options.output_dir,
        label_kind=record.MULTI_LABEL if sources.is_multi_label(options.input) else record.SINGLE_LABEL,
        shards={shards.TRAIN: options.shards} | validation_shards(options),
        images=image_settings(options),
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


def list_items(part: str, path: str) -> Iterator[tuple]:
    """Lists one part of the source, counting for the progress line."""
    for item in sources.items(path, part):
        progress.listed(1)
        yield item


class Union(beam.CombineFn):
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
        | "Split hashes" >> beam.Map(lambda item: shards.split_hash(item.key))
        | "Smallest" >> beam.CombineGlobally(Smallest(count + 1))
        | "Bound" >> beam.Map(_bound, count)
    )


def _bound(smallest: list[int], count: int) -> int:
    if len(smallest) <= count:
        raise BuildError(
            f"--validation_examples={count}: the source lists only {len(smallest)} images, which would leave "
            "none to train on: hold out fewer."
        )
    return smallest[count]


class ToName(beam.DoFn):
    """Item -> ((split, shard), name): class names become indices, the key's hashes say where it goes."""

    def __init__(self, task: shards.Task):
        self.task = task
        self.indices = None

    def start_bundle(self):
        self.indices = None

    def process(self, item, classes: list[str], held_out: int) -> Iterable:
        if self.indices is None:
            self.indices = {name: index for index, name in enumerate(classes)}
        labels, refusal = (), item.refusal
        try:
            labels = tuple(self.indices[label] for label in item.labels)
        except KeyError as error:
            refusal = refusal or ("unknown_label", f"{error.args[0]!r} is not among the {len(classes)} classes")
        split = shards.VALIDATION if shards.split_hash(item.key) < held_out else shards.TRAIN
        index = shards.position(item.key) % self.task.shards[split]
        yield (split, index), tuple(item._replace(labels=labels, refusal=refusal))


def write_shard(group: tuple[tuple[str, int], Iterable], task: shards.Task) -> tuple[str, int, dict]:
    """Builds one shard; returns where it belongs and what the end of the build needs of it."""
    (split, index), names = group
    names = (shards.Name(*name) for name in names if name is not None)
    return split, index, finish.summary(shards.build(task, split, index, names))


def remove_manifest(output_dir: str) -> None:
    """Removes the manifest of an earlier build: from here until the new one, there is no record set."""
    path = os.path.join(output_dir, "manifest.json")
    if os.path.exists(path):
        os.remove(path)
