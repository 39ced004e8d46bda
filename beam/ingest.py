"""The Beam graph: listing -> split and shard of each example -> shards -> manifest."""

import collections
import concurrent.futures
import dataclasses
import io
import itertools
from collections.abc import Hashable, Iterable, Iterator

import apache_beam as beam
from apache_beam.pvalue import AsList, AsSingleton
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam import duplicates, files, finalize, hashing, planning, progress, shards, splits, writing
from beam.errors import BuildError
from beam.examples import SourceExample, label_text, name_bytes, text
from beam.options import BuildOptions
from beam.sources.source import Source
from pipeline.data import manifest, record

_SHARDS_AT_ONCE = 2
_LONGEST_KEY = 1 << 16  # bytes; tables of hashes cannot be read with fields of 128 KiB


def build(pipeline: beam.Pipeline, options: BuildOptions, source: Source, folder: str) -> None:
    """Adds the whole build to `pipeline`, which writes the record set into `folder`."""
    beam.typehints.disable_type_annotations()  # Beam would choose coders by them, of signed integers for our hashes
    lister = dataclasses.replace(source, parts=())  # every worker gets it
    given = given_classes(options) or source.classes
    parts = pipeline | "Source" >> beam.Create([name_bytes(part) for part in source.parts])  # spread over the workers
    listed = parts | "List" >> beam.FlatMap(list_part, lister)
    totals = listed | "Totals" >> beam.CombineGlobally(planning.ListingTotals(with_labels=given is None))
    classes = totals | "Classes" >> beam.Map(lambda total: given or lister.label_order(total.labels))
    indices = AsSingleton(classes | "Indices" >> beam.Map(lambda names: {name: i for i, name in enumerate(names)}))
    specs = planning.build_spec(listed, totals, options, folder, source.is_multi_label)
    spec = AsSingleton(specs)
    placed = listed | "Place" >> beam.Map(to_shard, spec, indices)
    every = specs | "Shards" >> beam.FlatMap(every_shard)
    shuffled = {"examples": (placed, every) | "Examples" >> beam.Flatten()}
    reference = _reference(pipeline, options)
    if options.duplicates != "off":
        shuffled["pairs"] = _pairs(shuffled["examples"], spec, options, reference)
    written = shuffled | "Shuffle names" >> beam.CoGroupByKey() | "Write" >> beam.ParDo(WriteShards(), spec, reference)
    results = AsList(written | "Without contents" >> beam.Map(finalize.without_contents))
    shared = AsSingleton(_in_two_splits(written))
    totals | "Finalize" >> beam.Map(finalize.finalize, spec, indices, given is not None, results, shared)


def given_classes(options: BuildOptions) -> list[str] | None:
    """The class names that a flag gives, in label order; None without such a flag."""
    if options.classes_of:
        try:
            return list(manifest.read(options.classes_of).classes)
        except manifest.ManifestError as error:
            raise BuildError(f"--classes_of={options.classes_of}: {error}") from error
    return read_classes(options.classes) if options.classes else None


def read_classes(path: str) -> list[str]:
    """Class names in label order, one a line; written as those of a source are."""
    try:
        with io.TextIOWrapper(files.open_to_read(path), encoding="utf-8-sig") as file:
            names = [label_text(line.rstrip("\r\n")) for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"--classes={path}: {error}; expected a text file with a class name a line.") from error
    if not names or "" in names or len(set(names)) != len(names):
        raise BuildError(f"--classes={path}: expected class names, one a line, none empty and none twice.")
    return names


def list_part(part: bytes, source: Source) -> Iterator[SourceExample[str]]:
    """Lists one part of the source, counting for the progress line."""
    for example in source.examples(text(part)):
        progress.count("listed", 1)
        yield example


def to_shard(
    example: SourceExample[str], spec: shards.BuildSpec, indices: dict[str, int]
) -> tuple[tuple[str, int], tuple]:
    """((split, shard number), the example with class indices for labels, as a plain tuple)."""
    labels: tuple[int, ...] = ()
    refusal = example.refusal
    if len(example.key) > _LONGEST_KEY:
        refusal = refusal or ("bad_row", f"a key of {len(example.key):,} bytes; at most {_LONGEST_KEY:,}")
    try:
        labels = tuple(indices[label] for label in example.labels)
    except KeyError as error:
        refusal = refusal or ("unknown_label", f"{error.args[0]!r} is not among the {len(indices)} classes")
    if spec.label_kind == record.SINGLE_LABEL and len(labels) != 1:
        refusal = refusal or ("bad_row", f"{len(labels)} labels in a source of one label an image")
    return shards.shard_of(example.key, example.split, spec), (*example.location, labels, example.weights, refusal)


def _reference(pipeline: beam.Pipeline, options: BuildOptions) -> AsSingleton | None:
    """The hashes of the evaluation sets, as a side input; None if there are none."""
    if not options.remove_duplicates_of:
        return None
    parts = [part for path in options.remove_duplicates_of for part in hashing.evaluation_parts(path)]
    return AsSingleton(
        pipeline
        | "Evaluation sets" >> beam.Create(parts)
        | "Their hashes" >> beam.FlatMap(hashing.hash_part)
        | "Together" >> beam.combiners.ToList()
        | "Index" >> beam.Map(duplicates.Reference, options.duplicate_distance)
    )


def _pairs(
    examples: beam.PCollection, spec: AsSingleton, options: BuildOptions, reference: AsSingleton | None
) -> beam.PCollection:
    """((split, shard number), pair) for every image that is a duplicate of another in the set."""
    distance, both = options.duplicate_distance, options.duplicates == "drop"
    alike = (
        examples
        | "Shuffle names to hash" >> beam.GroupByKey()
        | "Hash" >> beam.FlatMap(hash_shard, spec, reference)
        | "By hash" >> beam.Map(by_hash)
        | "Same hash" >> beam.GroupByKey()
        | "Pairs of one hash" >> beam.FlatMap(duplicates.same_hash, distance, both)
    )
    pairs = [alike | "Their pairs" >> beam.Filter(lambda value: isinstance(value, duplicates.Pair))]
    if distance > 0:
        pairs.append(
            alike
            | "First of a hash" >> beam.Filter(lambda value: isinstance(value, duplicates.HashedImage))
            | "Buckets" >> beam.FlatMap(duplicates.buckets, distance)
            | "Same bucket" >> beam.GroupByKey()
            | "Near pairs" >> beam.FlatMap(duplicates.near, distance, both)
        )
    placed = beam.Map(place_pair, spec)
    return pairs | "All pairs" >> beam.Flatten() | "Place pairs" >> placed


def place_pair(pair: duplicates.Pair, spec: shards.BuildSpec) -> tuple[tuple[str, int], duplicates.Pair]:
    """((split, shard number), the pair) for the shard of its image."""
    return shards.shard_of(pair.image.key, pair.image.split, spec), pair


def _in_two_splits(written: beam.PCollection) -> beam.PCollection:
    """One dictionary: pair of splits to the number of images, by their bytes, that are in both."""
    return (
        written
        | "Contents" >> beam.FlatMap(finalize.contents)
        | "Same content" >> beam.GroupByKey()
        | "In two splits" >> beam.FlatMap(lambda group: itertools.combinations(splits.in_order(set(group[1])), 2))
        | "Images in two splits" >> beam.CombineGlobally(Tally())
    )


class Tally(beam.CombineFn):
    """How often each of a few different values occurs, as a dictionary."""

    def create_accumulator(self) -> dict:
        return {}

    def add_input(self, accumulator: dict, value: Hashable) -> dict:
        accumulator[value] = accumulator.get(value, 0) + 1
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[dict]) -> dict:
        return dict(sum(map(collections.Counter, accumulators), collections.Counter()))

    def extract_output(self, accumulator: dict) -> dict:
        return accumulator


def hash_shard(
    group: tuple, spec: shards.BuildSpec, reference: duplicates.Reference | None
) -> Iterator[duplicates.HashedImage]:
    """The hashes of one shard's usable images."""
    (split, index), examples = group
    for image in hashing.hash_shard(spec, split, index, _examples(examples), reference):
        yield image._replace(split=split)


def by_hash(image: duplicates.HashedImage) -> tuple[int, tuple]:
    """(perceptual hash, the image as a plain tuple)."""
    return image.perceptual, tuple(image)


def every_shard(spec: shards.BuildSpec) -> Iterator[tuple[tuple[str, int], None]]:
    """((split, shard number), None) for every shard, so that those without an example are written too."""
    for split, count in spec.shards.items():
        for index in range(count):
            yield (split, index), None


class WriteShards(beam.DoFn):
    """Writes shards: (split, shard number, what the end of the build needs of it) for each.

    Two are under way at a time, so that there are images to check while the last ones of a shard are written.
    """

    def start_bundle(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(_SHARDS_AT_ONCE)
        self._waiting: collections.deque[concurrent.futures.Future] = collections.deque()

    def process(
        self, group: tuple, spec: shards.BuildSpec, reference: duplicates.Reference | None
    ) -> Iterator[shards.ShardResult]:
        self._waiting.append(self._pool.submit(shard_summary, group, spec, reference))
        if len(self._waiting) > _SHARDS_AT_ONCE:
            yield self._waiting.popleft().result()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        with self._pool:
            for future in self._waiting:
                yield GlobalWindows.windowed_value(future.result())


def shard_summary(group: tuple, spec: shards.BuildSpec, reference: duplicates.Reference | None) -> shards.ShardResult:
    """Writes one shard; returns (split, shard number, what the end of the build needs of it)."""
    (split, index), values = group
    stats = writing.commit_shard(spec, split, index, _examples(values["examples"]), values.get("pairs", ()), reference)
    return split, index, finalize.shortened(stats)


def _examples(group: Iterable[tuple | None]) -> Iterator[SourceExample[int]]:
    return (SourceExample(*values) for values in group if values is not None)
