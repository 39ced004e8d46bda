"""WebDataset tar shards: samples are members that share a name up to the first dot, an image and a label.

Nothing is extracted. Listing finds where the bytes of each image are in the archive, and they are read from there.
"""

import json
import os
import tarfile
from collections.abc import Iterator, Mapping

from beam import files
from beam.examples import SourceExample, name_bytes
from beam.sources.source import Source
from beam.sources.table import labels_and_weights

_IMAGES = ("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm")
_LABELS = ("cls", "json")
_LARGEST_LABEL = 1 << 20  # bytes; a label file above this is no label file
_TAIL = 1 << 20  # bytes behind a tar's last member that must be zeros; writers fill up to 10 KiB
_NOWHERE = (0, 0)  # offset and size of what is no image: nobody should read all of the tar
_Member = tuple[tarfile.TarInfo, str, bytes | None]  # with its extension, and its content if it is a label
_NO_LABEL = ("no_label", "no .cls or .json beside it that names a class")


class TarSource(Source):
    """Tar shards, each of which is a part."""

    name = "a tar shard"
    help = "tar shards (.tar)"

    @classmethod
    def recognizes(cls, path: str) -> bool:
        return path.endswith(".tar")

    @classmethod
    def open(cls, path: str, flags: Mapping[str, str]) -> "TarSource":
        shards = files.match(path)
        return cls(path, shards, _is_multi_label(shards[0]), root=files.common_folder(shards))

    def examples(self, part: str) -> Iterator[SourceExample]:
        """The samples of a tar shard.

        Labels are in a `.cls` member (the class) or a `.json` member with `label`, or `labels` and `label_weights`.
        """
        shard, name = part.removeprefix(self.root), None
        members: list[_Member] = []
        try:
            for member, extension, content in _members(part):
                sample = _sample_name(member)
                if sample != name and members:
                    yield _sample(part, shard, members)
                    members = []
                name = sample
                members.append((member, extension, content))
        except OSError as error:
            key, refusal = name_bytes(f"{shard}/after {name}"), ("unreadable", f"damaged tar: {error}")
            yield SourceExample(key, name_bytes(part), *_NOWHERE, refusal=refusal)
        if members:
            yield _sample(part, shard, members)


def _members(path: str) -> Iterator[_Member]:
    """A tar's files and links.

    Raises:
      OSError: from some byte on, the file is no tar.
    """
    with files.open_to_read(path) as file:
        archive = None
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                    if archive.offset < member.offset_data:
                        raise tarfile.ReadError("a member of negative size")
                    extension, content = os.path.basename(member.name).partition(".")[2].lower(), None
                    if extension in _LABELS and member.isreg() and member.size <= _LARGEST_LABEL:
                        label = archive.extractfile(member)
                        content = label.read() if label else None
                    if not member.isdir():
                        yield member, extension, content
        except Exception as error:  # tarfile raises many types on hostile headers
            raise _damage(archive.offset if archive else 0, f"{type(error).__name__}: {error}") from error
        # tarfile takes whatever is no header for the end.
        file.seek(archive.offset)
        if file.read(_TAIL).strip(b"\0"):
            raise _damage(archive.offset, "neither a member nor the zeros that end a tar")


def _damage(offset: int, reason: str) -> OSError:
    return OSError(f"no more of it can be listed from byte {offset} on ({reason}); copy or pack it again")


def _sample_name(member: tarfile.TarInfo) -> str:
    folder, base = os.path.split(member.name)
    return os.path.join(folder, base.split(".")[0])


def _sample(path: str, shard: str, members: list[_Member]) -> SourceExample:
    images = [member for member, extension, _ in members if extension in _IMAGES]
    named = (images or [members[0][0]])[0]
    example = SourceExample(name_bytes(f"{shard}/{named.name}"), name_bytes(path), *_NOWHERE)
    if not images:
        return example._replace(refusal=("bad_sample", f"no image among {[m.name for m, _, _ in members]!r:.200}"))
    if len(images) > 1:
        return example._replace(refusal=("bad_sample", f"{len(images)} images, expected one"))
    if not named.isreg() or named.issparse() or os.path.isabs(named.name) or ".." in named.name.split("/"):
        return example._replace(refusal=("outside", "the member is a link, or its name leads out of the archive"))
    example = example._replace(offset=named.offset_data, size=named.size)
    try:
        labels, weights = _labels(members)
    except (ValueError, TypeError, RecursionError) as error:
        return example._replace(refusal=("bad_sample", f"label: {error}"[:200]))
    return example._replace(labels=labels, weights=weights, refusal=None if labels else _NO_LABEL)


def _labels(members: list[_Member]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    contents = {extension: content for _, extension, content in members if content is not None}
    if "cls" in contents:
        return labels_and_weights({"label": contents["cls"].decode().strip()})
    row = json.loads(contents.get("json", b"{}"))
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    return labels_and_weights(row)


def _is_multi_label(path: str) -> bool:
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
