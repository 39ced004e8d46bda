"""The Beam graph: listing -> split and shard of each example -> shards -> manifest."""

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.pvalue import AsList, AsSingleton

from beam import duplicates, finalize, hashing, planning, progress, shards, writing
from beam.errors import BuildError
from beam.examples import SourceExample, name_bytes, text
from beam.options import BuildOptions
from beam.sources.source import Source
from pipeline.data import record

_LONGEST_KEY = 1 << 16  # bytes; tables of hashes cannot be read with fields of 128 KiB


def build(pipeline: beam.Pipeline, options: BuildOptions, source: Source) -> None:
    """Adds the whole build to `pipeline`."""
    beam.typehints.disable_type_annotations()  # Beam would choose coders by them, of signed integers for our hashes
    lister = dataclasses.replace(source, parts=())  # every worker gets it
    given = read_classes(options.classes) if options.classes else source.classes
    listed = (
        pipeline
        | "Source" >> beam.Create([name_bytes(part) for part in source.parts])
        | "Spread" >> beam.Reshuffle()
        | "List" >> beam.FlatMap(list_part, lister)
    )
    if given is None:
        labels = listed | "Labels" >> beam.FlatMap(lambda example: example.labels)
        classes = labels | "Class names" >> beam.combiners.ToSet() | "Classes" >> beam.Map(lister.label_order)
    else:
        classes = pipeline | "Classes" >> beam.Create([given])
    indices = AsSingleton(classes | "Indices" >> beam.Map(lambda names: {name: i for i, name in enumerate(names)}))
    listing_size = planning.listing_size(listed)
    specs = planning.build_spec(listed, listing_size, options, source.is_multi_label)
    spec = AsSingleton(specs)
    placed = listed | "Place" >> beam.Map(to_shard, spec, indices)
    every = specs | "Shards" >> beam.FlatMap(every_shard)
    shuffled = {"examples": (placed, every) | "Examples" >> beam.Flatten()}
    reference = _reference(pipeline, options)
    if options.duplicates != "off":
        shuffled["pairs"] = _pairs(shuffled["examples"], spec, options, reference)
    results = shuffled | "Shuffle names" >> beam.CoGroupByKey() | "Write" >> beam.Map(shard_summary, spec, reference)
    listing_size | "Finalize" >> beam.Map(finalize.finalize, spec, indices, given is not None, AsList(results))


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
    return shards.shard_of(example.key, spec), (*example.location, labels, example.weights, refusal)


def _reference(pipeline: beam.Pipeline, options: BuildOptions) -> AsSingleton | None:
    """The hashes of the evaluation sets, as a side input; None if there are none."""
    if not options.remove_duplicates_of:
        return None
    parts = [part for path in options.remove_duplicates_of for part in hashing.evaluation_parts(path)]
    return AsSingleton(
        pipeline
        | "Evaluation sets" >> beam.Create(parts)
        | "Spread them" >> beam.Reshuffle()
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
    placed = beam.Map(lambda pair, spec: (shards.shard_of(pair.image.key, spec), pair), spec)
    return pairs | "All pairs" >> beam.Flatten() | "Place pairs" >> placed


def hash_shard(
    group: tuple, spec: shards.BuildSpec, reference: duplicates.Reference | None
) -> Iterator[duplicates.HashedImage]:
    """The hashes of one shard's usable images."""
    (split, index), examples = group
    yield from hashing.hash_shard(spec, split, index, _examples(examples), reference)


def by_hash(image: duplicates.HashedImage) -> tuple[int, tuple]:
    """(perceptual hash, the image as a plain tuple)."""
    return image.perceptual, tuple(image)


def every_shard(spec: shards.BuildSpec) -> Iterator[tuple[tuple[str, int], None]]:
    """((split, shard number), None) for every shard, so that those without an example are written too."""
    for split, count in spec.shards.items():
        for index in range(count):
            yield (split, index), None


def shard_summary(group: tuple, spec: shards.BuildSpec, reference: duplicates.Reference | None) -> shards.ShardResult:
    """Writes one shard; returns (split, shard number, what the end of the build needs of it)."""
    (split, index), values = group
    stats = writing.commit_shard(spec, split, index, _examples(values["examples"]), values.get("pairs", ()), reference)
    return split, index, finalize.summary(stats)


def _examples(group: Iterable[tuple | None]) -> Iterator[SourceExample[int]]:
    return (SourceExample._make(values) for values in group if values is not None)
