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

    Raises:
      BuildError: there is no such data set or split, or it has no image with one kind of class label.
    """

    def __init__(self, path: str):
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
                "tfds:NAME/SPLIT of a data set on disk (prepare it with `tfds build NAME`, say where with "
                "the environment variable TFDS_DATA_DIR), or tfds:FOLDER/SPLIT."
            ) from error
        if missing := [file for file in self.files if not files.exists(file)]:
            raise BuildError(f"--input={path}: {missing[0]} is missing: prepare the data set with `tfds build`.")
        features = builder.info.features
        kinds = {name: feature for name, feature in features.items()}
        self.image = _only(path, kinds, lambda f: isinstance(f, tfds.features.Image), "Image")
        self.label = _only(path, kinds, lambda f: _class_label(f, tfds) is not None, "ClassLabel")
        label = _class_label(kinds[self.label], tfds)
        self.is_multi_label = not isinstance(kinds[self.label], tfds.features.ClassLabel)
        self.weights = "label_weights" if self.is_multi_label and "label_weights" in kinds else None
        self.classes = [label_text(name) for name in label.names]


def _class_label(feature, tfds):
    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, tfds.features.ClassLabel) else None


def _only(path: str, features: dict, wanted, kind: str) -> str:
    found = [name for name, feature in features.items() if wanted(feature)]
    if len(found) != 1:
        raise BuildError(f"--input={path}: {len(found)} features are {kind} ({found}); expected exactly one.")
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
            weights = tuple(features[fields[2]].float_list.value) if fields[2] else (1.0,) * len(names)
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
