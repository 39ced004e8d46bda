"""Where labelled images come from, by what `--input` looks like: a folder tree, lists, tar shards, or TFDS.

A source is a list of parts, each of which one worker lists as a stream of items.
"""

from collections.abc import Iterator
from typing import NamedTuple

from beam import archives, files, folders, lists
from beam.items import Item, name_bytes, text
from beam.options import BuildError


class Source(NamedTuple):
    """A source after a look at it: its parts, kind of labels, and class names if it has an order of its own.

    fields: of TFDS, the names of what is used of a record. root: of lists and tar shards, the folder that holds them
    all, by which those of several folders have different keys.
    """

    kind: str
    path: str
    parts: list[bytes]
    is_multi_label: bool
    classes: list[str] | None
    fields: tuple = ()
    root: str = ""


def look(path: str, image_feature: str = "", label_feature: str = "") -> Source:
    """Looks at the source before any work.

    Args:
      path: what `--input` says.
      image_feature, label_feature: of a TFDS set with several, which to take; see `archives.TfdsSource`.

    Raises:
      BuildError: it is missing, empty, out of reach, or not as it should be.
    """
    try:
        source = _look(path, image_feature, label_feature)
    except OSError as error:
        raise BuildError(f"--input={path} is out of reach: {error}") from error
    return source._replace(parts=[name_bytes(part) for part in source.parts])


def _look(path: str, image_feature: str, label_feature: str) -> Source:
    if path.startswith(archives.TFDS):
        found = archives.TfdsSource(path, image_feature, label_feature)
        fields = (found.image, found.label, found.weights)
        return Source("tfds", path, found.files, found.is_multi_label, found.classes, fields)
    for flag, given in (("image_feature", image_feature), ("label_feature", label_feature)):
        if given:
            raise BuildError(f"--{flag} chooses from a TFDS set, and --input={path} is none: leave it out.")
    if path.endswith((*lists.SUFFIXES, archives.TAR)):
        parts = files.match(path)
        if not parts:
            raise BuildError(f"--input={path} does not exist: expected a list, a tar shard, or a pattern for several.")
        root = files.common_folder(parts)
        if path.endswith(archives.TAR):
            return Source("tar", path, parts, archives.tar_is_multi_label(parts[0]), None, root=root)
        for part in parts:
            next(lists.rows(part))
        return Source("list", path, parts, lists.is_multi_label(parts[0]), None, root=root)
    if not files.exists(path):
        raise BuildError(
            f"--input={path} does not exist: expected a folder of class folders, a list (.csv, .jsonl, .parquet), "
            "tar shards (.tar) or tfds:NAME/SPLIT."
        )
    folders.check(path)
    return Source("folder", path, folders.parts(path), False, None)


def items(part: bytes, source: Source) -> Iterator[Item]:
    """The items of one of the source's parts."""
    part = text(part)
    if source.kind == "folder":
        return folders.items(source.path, part)
    if source.kind == "list":
        return lists.items(part, source.root)
    if source.kind == "tar":
        return archives.tar_items(part, source.root)
    return archives.tfds_items(part, source.fields, source.classes)


def sorted_classes(names: list[str], kind: str) -> list[str]:
    """Label order of class names that were found: numbers by value, unless they are folders, else by name."""
    if kind != "folder" and all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
