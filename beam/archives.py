"""Images inside larger files: WebDataset tar shards, and TFDS record files.

Nothing is extracted. Listing finds where the bytes of each image lie in the file, and they are read from there.
"""

import json
import os
import struct
import tarfile
from collections.abc import Iterator

import tensorflow as tf

from beam import files, lists
from beam.items import Item, label_text, name_bytes
from beam.options import BuildError

TAR = ".tar"
TFDS = "tfds:"
_IMAGES = ("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm")
_LABELS = ("cls", "json")
_LARGEST_LABEL = 1 << 20  # bytes; a label file above this is no label file
_TAIL = 1 << 20  # bytes behind a tar's last member that must be zeros; writers fill up to 10 KiB
_NOWHERE = (0, 0)  # offset and size of what is no image: nobody should read all of the tar
_RECORD = struct.Struct("<QI")


def tar_items(path: str, root: str) -> Iterator[Item]:
    """The samples of a tar shard: members that share a name up to the first dot, an image and a label.

    Labels are in a `.cls` member (the class) or a `.json` member with `label`, or `labels` and `label_weights`. What
    cannot be listed becomes one item that is refused.

    Args:
      path: the tar.
      root: the beginning of `path` that keys leave out.
    """
    shard, name, members = path.removeprefix(root), None, []
    try:
        for member, extension, content in _members(path):
            sample = _sample_name(member)
            if sample != name and members:
                yield _sample(path, shard, members)
                members = []
            name = sample
            members.append((member, extension, content))
    except OSError as error:
        key, refusal = name_bytes(f"{shard}/after {name}"), ("unreadable", f"damaged tar: {error}")
        yield Item(key, name_bytes(path), *_NOWHERE, refusal=refusal)
    if members:
        yield _sample(path, shard, members)


def _members(path: str) -> Iterator[tuple[tarfile.TarInfo, str, bytes | None]]:
    """(member, its extension, its content if it is a label) of a tar's files and links.

    Raises:
      OSError: from some byte on, the file is no tar.
    """
    with files.open_to_read(path) as file:
        archive = None
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # tarfile would keep every header
                    if archive.offset < member.offset_data:
                        raise tarfile.ReadError("a member of negative size")
                    extension, content = os.path.basename(member.name).partition(".")[2].lower(), None
                    if extension in _LABELS and member.isreg() and member.size <= _LARGEST_LABEL:
                        content = archive.extractfile(member).read()
                    if not member.isdir():
                        yield member, extension, content
        except Exception as error:  # tarfile raises many types on hostile headers
            raise _damage(archive.offset if archive else 0, f"{type(error).__name__}: {error}") from error
        # tarfile takes whatever is no header for the end.
        file.seek(archive.offset)
        if file.read(_TAIL).strip(b"\0"):
            raise _damage(archive.offset, "neither a member nor the zeros that end a tar")


def _damage(offset: int, found: str) -> OSError:
    return OSError(f"no more of it can be listed from byte {offset} on ({found}); copy or pack it again")


def _sample_name(member: tarfile.TarInfo) -> str:
    folder, base = os.path.split(member.name)
    return os.path.join(folder, base.split(".")[0])


def _sample(path: str, shard: str, members: list) -> Item:
    images = [member for member, extension, _ in members if extension in _IMAGES]
    named = (images or [members[0][0]])[0]
    item = Item(name_bytes(f"{shard}/{named.name}"), name_bytes(path), *_NOWHERE)
    if not images:
        return item._replace(refusal=("bad_sample", f"no image among {[m.name for m, _, _ in members]!r:.200}"))
    if len(images) > 1:
        return item._replace(refusal=("bad_sample", f"{len(images)} images, expected one"))
    if not named.isreg() or named.issparse() or os.path.isabs(named.name) or ".." in named.name.split("/"):
        return item._replace(refusal=("outside", "the member is a link, or its name leads out of the archive"))
    item = item._replace(offset=named.offset_data, size=named.size)
    try:
        names, weights = _tar_labels(members)
    except (ValueError, TypeError, RecursionError) as error:
        return item._replace(refusal=("bad_sample", f"label: {error}"[:200]))
    return item._replace(labels=names, weights=weights, refusal=None if names else _NO_LABEL)


_NO_LABEL = ("no_label", "no .cls or .json beside it that names a class")


def _tar_labels(members: list) -> tuple[tuple[str, ...], tuple[float, ...]]:
    contents = {extension: content for _, extension, content in members if content is not None}
    if "cls" in contents:
        return lists.labels({"label": contents["cls"].decode().strip()})
    row = json.loads(contents.get("json", b"{}"))
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    return lists.labels(row)


def tar_is_multi_label(path: str) -> bool:
    """Whether the first sample of a tar shard has `labels` in its `.json`."""
    try:
        for _, extension, content in _members(path):
            if extension == "json" and content is not None:
                return "labels" in json.loads(content)
            if extension == "cls":
                return False
    except (OSError, ValueError, TypeError, RecursionError):
        pass  # listing will say what is wrong with it
    return False


class TfdsSource:
    """A split of a TFDS data set that is on disk: `tfds:NAME/SPLIT`, or `tfds:FOLDER/SPLIT`.

    Args:
      path: such a name.
      image, label: which of its features to take, `a/b` for one inside another; "": the only one of its kind, or the
        one that the data set itself names for supervised learning.

    Raises:
      BuildError: there is no such data set or split, or it has not one image with one kind of class label.
    """

    def __init__(self, path: str, image: str = "", label: str = ""):
        import tensorflow_datasets as tfds  # here: other sources do without it

        name, _, split = path.removeprefix(TFDS).rpartition("/")
        try:
            is_folder = os.path.isabs(name) or files.is_remote(name)
            builder = tfds.builder_from_directory(name) if is_folder else tfds.builder(name)
            info = builder.info.splits[split]
            self.files = [str(file) for file in info.filepaths]
        except Exception as error:  # TFDS raises many types for what it does not find
            raise BuildError(
                f"--input={path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}; expected "
                f"tfds:NAME/SPLIT of a data set on disk ({_PREPARE}; say where with the environment variable "
                "TFDS_DATA_DIR), or tfds:FOLDER/SPLIT."
            ) from error
        if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise BuildError(
                f"--input={path} is stored as {builder.info.file_format.value}; expected tfrecord, TFDS's default: "
                "prepare it with `file_format='tfrecord'` in another folder."
            )
        if missing := [file for file in self.files if not files.exists(file)]:
            raise BuildError(f"--input={path}: {missing[0]} is missing: {_PREPARE}.")
        kinds = _flat(builder.info.features, tfds.features)
        images = [n for n, (kind, repeated) in kinds.items() if _is_photo(kind, tfds.features) and not repeated]
        labels = [n for n, (kind, _) in kinds.items() if isinstance(kind, tfds.features.ClassLabel)]
        usual = tf.nest.flatten(builder.info.supervised_keys)
        self.image = _chosen(path, "image_feature", "Image", images, image, usual)
        self.label = _chosen(path, "label_feature", "ClassLabel", labels, label, usual)
        label_kind, self.is_multi_label = kinds[self.label]
        self.weights = "label_weights" if self.is_multi_label and "label_weights" in kinds else None
        self.classes = [label_text(name) for name in label_kind.names]


_PREPARE = "prepare it with `tensorflow_datasets.builder(NAME).download_and_prepare()`"


def _flat(features, kinds, prefix: str = "", repeated: bool = False) -> dict[str, tuple[object, bool]]:
    """Name in a record to (feature, whether it holds any number of values)."""
    flat = {}
    for name, feature in features.items():
        several = repeated or isinstance(feature, kinds.Sequence)
        inner = feature.feature if isinstance(feature, kinds.Sequence) else feature
        if isinstance(inner, kinds.FeaturesDict):
            flat |= _flat(inner, kinds, f"{prefix}{name}/", several)
        else:
            flat[f"{prefix}{name}"] = inner, several
    return flat


def _is_photo(feature, kinds) -> bool:
    return isinstance(feature, kinds.Image) and not isinstance(feature, kinds.LabeledImage)


def _chosen(path: str, flag: str, kind: str, found: list[str], wanted: str, usual: list[str]) -> str:
    """Of the features `found`, the one that is `wanted`, or the only one, or the only `usual` one."""
    if wanted in found:
        return wanted
    if wanted:
        raise BuildError(f"--{flag}={wanted}: no {kind} of that name in {path}; there are: {', '.join(found)}.")
    if not found:
        raise BuildError(f"--input={path}: none of its features is {kind}; expected images with class labels.")
    found = [name for name in found if name in usual] or found
    if len(found) > 1:
        names = ", ".join(found)
        raise BuildError(f"--input={path}: several features are {kind} ({names}): choose with --{flag}={found[0]}.")
    return found[0]


def tfds_items(path: str, fields: tuple[str, str, str | None], classes: list[str]) -> Iterator[Item]:
    """The examples of one TFRecord file of a TFDS data set.

    Args:
      path: the file.
      fields: names of the image, the label and the label weights (or None) in its records.
      classes: class names in label order.
    """
    file_name = os.path.basename(path)
    for number, (offset, payload) in enumerate(_payloads(path)):
        key = name_bytes(f"{file_name}__{number}")
        try:
            features = tf.train.Example.FromString(payload).features.feature
            (image,) = features[fields[0]].bytes_list.value
            labels = list(features[fields[1]].int64_list.value)
            names = tuple(classes[label] for label in labels if label >= 0)
            if fields[2]:
                weights = tuple(features[fields[2]].float_list.value)
            else:  # the labels of an image's objects may repeat
                names = tuple(dict.fromkeys(names))
                weights = (1.0,) * len(names)
            if len(weights) != len(names):
                raise ValueError(f"{len(names)} labels, but {len(weights)} weights")
        except Exception as error:  # the protocol buffer library raises a type of its own
            yield Item(key, name_bytes(path), refusal=("bad_row", f"{type(error).__name__}: {error}"[:200]))
            continue
        place = offset + payload.find(image)
        refusal = None if names else ("no_label", "the data set gives it no label")
        yield Item(key, name_bytes(path), place, len(image), names, weights, refusal)


def _payloads(path: str) -> Iterator[tuple[int, bytes]]:
    """(offset, payload) of each record of a TFRecord file; what is cut off at its end is an empty payload."""
    offset = 0
    with files.open_to_read(path) as file:
        while header := file.read(_RECORD.size):
            offset += _RECORD.size
            length = _RECORD.unpack(header)[0] if len(header) == _RECORD.size else -1
            payload = file.read(length) if 0 <= length < 1 << 31 else b""
            if len(payload) != length:
                yield offset, b""
                return
            yield offset, payload
            offset += length + 4
            file.read(4)
