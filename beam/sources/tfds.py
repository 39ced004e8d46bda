"""Splits of TFDS data sets on disk, read as the files that TFDS writes: TFRecords, ArrayRecords, Parquet.

Nothing is copied. Listing finds where the bytes of each image are in the record files, and they are read from there.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, ClassVar

from beam import files, record_files, splits
from beam.errors import BuildError
from beam.examples import SourceExample, label_text, name_bytes
from beam.sources.source import Source
from pipeline.errors import cause

_PREFIX = "tfds:"
_TFRECORD = "tfrecord"
_PREPARE = "prepare it with `tensorflow_datasets.builder(NAME).download_and_prepare()`"


@dataclasses.dataclass(frozen=True)
class TfdsSource(Source):
    """A split of a TFDS data set; its record files are the parts.

    Attributes:
      classes: always known.
      image, label, weights: which fields of its records are taken, `a/b` for one inside another; no weights: None.
      file_format: of the record files, as TFDS names it.
      lengths: the parts, and how many records each should hold.
    """

    name = "a TFDS data set"
    help = "tfds:NAME/SPLIT"
    flags: ClassVar[Mapping[str, str]] = {
        "image_feature": "Of a TFDS data set with several images, the feature to take.",
        "label_feature": "Of a TFDS data set with several labels, the feature to take.",
    }

    classes: tuple[str, ...] = ()
    image: str = ""
    label: str = ""
    weights: str | None = None
    file_format: str = _TFRECORD
    lengths: tuple[tuple[str, int], ...] = ()

    @classmethod
    def recognizes(cls, path: str) -> bool:
        return path.startswith(_PREFIX)

    @classmethod
    def open(cls, path: str, flags: Mapping[str, str]) -> "TfdsSource":
        """Opens `tfds:NAME/SPLIT` or `tfds:FOLDER/SPLIT`.

        A feature that no flag names is the only one of its kind, or the one that the data set itself names for
        supervised learning.
        """
        import tensorflow as tf  # here: other sources do not need them
        import tensorflow_datasets as tfds

        name, _, split = path.removeprefix(_PREFIX).rpartition("/")
        try:
            builder = _builder(name)
            found = builder.info.splits[split]
            parts = tuple(map(str, found.filepaths))
        except Exception as error:  # TFDS raises many types for what it does not find
            raise BuildError(
                f"--input={path}: {cause(error)}; expected "
                f"tfds:NAME/SPLIT of a data set on disk ({_PREPARE}; say where with the environment variable "
                "TFDS_DATA_DIR), or tfds:FOLDER/SPLIT."
            ) from error
        if split not in builder.info.splits:  # TFDS would give the files of the whole split
            names = ", ".join(builder.info.splits)
            raise BuildError(
                f"--input={path}: {split} is no whole split; expected one of {names}: give it with "
                "--validation_fraction or --validation_examples, and another as --validation_input or --test_input."
            )
        file_format = builder.info.file_format.value
        if file_format not in (_TFRECORD, *record_files.NAMES):
            raise BuildError(
                f"--input={path} is stored as {file_format}, which takes a Python package of that name that is in no "
                f"package index; expected {_TFRECORD}, TFDS's default, or {' or '.join(record_files.NAMES)}: prepare "
                f"it with `file_format='{_TFRECORD}'` in another folder."
            )
        if missing := [part for part in parts if not files.exists(part)]:
            raise BuildError(f"--input={path}: {missing[0]} is missing: {_PREPARE}.")
        kinds = tfds.features
        features = _flat(builder.info.features, kinds)
        images = [n for n, (kind, repeated) in features.items() if _is_photo(kind, kinds) and not repeated]
        labels = [n for n, (kind, _) in features.items() if isinstance(kind, kinds.ClassLabel)]
        usual = tf.nest.flatten(builder.info.supervised_keys)
        image = _chosen(path, "image_feature", "Image", images, flags, usual)
        label = _chosen(path, "label_feature", "ClassLabel", labels, flags, usual)
        label_kind, is_multi_label = features[label]
        classes = tuple(label_text(name) for name in label_kind.names)
        weights = "label_weights" if is_multi_label and "label_weights" in features else None
        return cls(
            path,
            parts,
            is_multi_label,
            classes,
            image=image,
            label=label,
            weights=weights,
            file_format=file_format,
            lengths=tuple(zip(parts, found.shard_lengths, strict=True)),
        )

    @classmethod
    def splits_of(cls, path: str) -> list[tuple[str, str, str]]:
        """The splits of a data set that is named without one: `tfds:NAME` or `tfds:FOLDER`.

        Raises:
          BuildError: it has splits of other names, of which none is left out silently.
        """
        name = path.removeprefix(_PREFIX)
        is_folder = os.path.isabs(name) or files.is_remote(name)
        if not (files.exists(os.path.join(name, "dataset_info.json")) if is_folder else "/" not in name):
            return []
        try:
            names = list(_builder(name).info.splits)
        except Exception:  # TFDS raises many types for what it does not find; `open` says what is wrong
            return []
        found = {split: own for own in names if (split := splits.named(own))}
        if not names or len(found) < len(names):
            raise BuildError(
                f"--input={path} has the splits {', '.join(names) or '(none)'}; expected only train, validation and "
                f"test: name one of them (--input={path}/SPLIT, --validation_input, --test_input)."
            )
        return [(split, "", f"{path}/{found[split]}") for split in splits.in_order(found)]

    def examples(self, part: str) -> Iterator[SourceExample]:
        """The records of a file; one that TFRecords lack, or whose end they lack, has a refusal."""
        path = name_bytes(part if self.file_format == _TFRECORD else record_files.path_of(self.file_format, part))
        expected = dict(self.lengths)[part]
        records = itertools.zip_longest(range(expected), self._payloads(part, expected))
        for number, (_, found) in enumerate(records):
            example = SourceExample(name_bytes(f"{os.path.basename(part)}__{number}"), path)
            if found is None:
                yield example._replace(refusal=("bad_row", f"its file lacks it; expected {expected} records"))
                continue
            payload, offset = found
            try:
                image, labels, weights = self._fields(payload)
            except Exception as error:  # the protocol buffer library raises a type of its own
                yield example._replace(refusal=("bad_row", f"{type(error).__name__}: {cause(error)}"[:200]))
                continue
            yield example._replace(
                offset=offset + payload.find(image),
                size=len(image),
                labels=labels,
                weights=weights,
                refusal=None if labels else ("no_label", "the data set gives it no label"),
            )

    def _payloads(self, part: str, count: int) -> Iterator[tuple[bytes, int]]:
        """(serialised record, offset where it begins) of a file that should hold `count`.

        Raises:
          BuildError: it is damaged, and not of TFRecords.
        """
        if self.file_format == _TFRECORD:
            from pipeline.data import shard  # here, as in `open`

            with files.open_to_read(part) as file:
                yield from ((payload, offset) for offset, payload in shard.scan(file))
            return
        try:
            for number, payload in enumerate(record_files.payloads(self.file_format, part, count)):
                yield payload, record_files.offset_of(number, 0)
        except OSError as error:
            raise BuildError(
                f"{part} cannot be read ({error}): prepare it with `file_format='{_TFRECORD}'` in another folder."
            ) from error

    def _fields(self, payload: bytes) -> tuple[bytes, tuple[str, ...], tuple[float, ...]]:
        """Image, labels and weights of a serialised record."""
        import tensorflow as tf  # here, as in `open`

        features = tf.train.Example.FromString(payload).features.feature
        (image,) = features[self.image].bytes_list.value
        labels = tuple(self.classes[label] for label in features[self.label].int64_list.value if label >= 0)
        if self.weights:
            weights = tuple(features[self.weights].float_list.value)
        else:  # the labels of an image's objects may repeat
            labels = tuple(dict.fromkeys(labels))
            weights = (1.0,) * len(labels)
        if len(weights) != len(labels):
            raise ValueError(f"{len(labels)} labels, but {len(weights)} weights")
        return image, labels, weights


def _builder(name: str) -> Any:
    """The TFDS builder of a data set's name or folder."""
    import tensorflow_datasets as tfds  # here: other sources do not need it

    is_folder = os.path.isabs(name) or files.is_remote(name)
    return tfds.builder_from_directory(name) if is_folder else tfds.builder(name)


def _flat(
    features: Mapping[str, Any], kinds: ModuleType, prefix: str = "", repeated: bool = False
) -> dict[str, tuple[Any, bool]]:
    """Name in a record to (feature, whether it holds any number of values)."""
    flat: dict[str, tuple[Any, bool]] = {}
    for name, feature in features.items():
        several = repeated or isinstance(feature, kinds.Sequence)
        inner = feature.feature if isinstance(feature, kinds.Sequence) else feature
        if isinstance(inner, kinds.FeaturesDict):
            flat |= _flat(inner, kinds, f"{prefix}{name}/", several)
        else:
            flat[f"{prefix}{name}"] = inner, several
    return flat


def _is_photo(feature: Any, kinds: ModuleType) -> bool:
    return isinstance(feature, kinds.Image) and not isinstance(feature, kinds.LabeledImage)


def _chosen(path: str, flag: str, kind: str, names: list[str], flags: Mapping[str, str], usual: list[str]) -> str:
    """Of the features `names`, the one that the flag names, or the only one, or the only `usual` one."""
    wanted = flags.get(flag)
    if wanted in names:
        return wanted
    if wanted:
        raise BuildError(f"--{flag}={wanted}: no {kind} of that name in {path}; there are: {', '.join(names)}.")
    if not names:
        raise BuildError(f"--input={path}: none of its features is {kind}; expected images with class labels.")
    names = [name for name in names if name in usual] or names
    if len(names) > 1:
        several = ", ".join(names)
        raise BuildError(f"--input={path}: several features are {kind} ({several}): choose with --{flag}={names[0]}.")
    return names[0]
