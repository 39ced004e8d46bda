"""Folder trees: every file below a folder is an image, and the first folder names its class."""

import heapq
import os
from collections.abc import Iterator

from beam import files
from beam.items import Item, label_text, name_bytes
from beam.options import BuildError


def check(root: str) -> None:
    """Looks at the tree before any work.

    Raises:
      BuildError: it has no class folders, or a class folder without a file.
    """
    if files.is_remote(root):
        if next(files.walk(root), None) is None:
            raise BuildError(f"--input={root} holds no file: expected {root}/CLASS/IMAGE.jpg and the like.")
        return
    if not os.path.isdir(root):
        raise BuildError(
            f"--input={root} is a file: expected a folder of class folders, a list (.csv, .jsonl, .parquet), "
            "tar shards (.tar) or tfds:NAME/SPLIT."
        )
    classes = class_folders(root)
    if not classes:
        raise BuildError(f"--input={root} holds no class folders: expected {root}/CLASS/IMAGE.jpg and the like.")
    if empty := [name for name in classes if next(_files(os.path.join(root, name)), None) is None]:
        some = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise BuildError(
            f"--input={root}: {len(empty)} of {len(classes)} class folders hold no image ({some}): "
            "add images, or remove the folder."
        )


def class_folders(root: str) -> list[str]:
    """The names of the class folders below a local `root`, sorted; hidden ones (`.name`) are no classes."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if _is_folder(e) and not e.name.startswith("."))


def parts(root: str) -> list[str]:
    """What can be listed on its own: each class folder, and the files beside them; a remote tree is one part."""
    return [""] if files.is_remote(root) else ["", *class_folders(root)]


def items(root: str, folder: str) -> Iterator[Item]:
    """The items of one of the `parts`; hidden files and folders (`.name`) are not listed."""
    if files.is_remote(root):
        yield from _remote(root)
    elif folder:
        labels, start = (label_text(folder),), len(os.path.join(root, ""))
        for file, size, refusal in _files(os.path.join(root, folder)):
            key = name_bytes(file[start:])
            yield Item(key, name_bytes(file), size=size, labels=labels, weights=(1.0,), refusal=refusal)
    else:
        with os.scandir(root) as entries:
            for entry in entries:
                if not _is_folder(entry) and not entry.name.startswith("."):
                    yield Item(name_bytes(entry.name), name_bytes(entry.path), refusal=_NO_CLASS)


_NO_CLASS = ("no_label", "lies beside the class folders, not in one")


def _remote(root: str) -> Iterator[Item]:
    for path, size in files.walk(root):
        key = path[len(root.rstrip("/")) + 1 :]
        steps = key.split("/")
        if any(step.startswith(".") for step in steps) or not steps[-1]:
            continue
        item = Item(name_bytes(key), name_bytes(path), size=size)
        if len(steps) == 1:
            yield item._replace(refusal=_NO_CLASS)
        else:
            yield item._replace(labels=(label_text(steps[0]),), weights=(1.0,))


def _files(folder: str) -> Iterator[tuple[str, int, tuple[str, str] | None]]:
    """(path, size, refusal) of every file below `folder`, through symbolic links, but in no folder twice.

    Links to folders wait until all folders that lie here are listed, and then come in an order, the shortest first: so
    the way on which a folder is listed is the same on every machine.
    """
    listed, folders, links = set(), [folder], []
    while folders or links:
        folder = folders.pop() if folders else heapq.heappop(links)[1]
        try:
            identity = (status := os.stat(folder)).st_dev, status.st_ino
            if identity in listed:
                yield folder, -1, ("unreadable", "symbolic link to a folder that is listed already")
                continue
            listed.add(identity)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not _is_folder(entry):
                        yield _file(entry)
                    elif entry.is_symlink():
                        heapq.heappush(links, (entry.path.count("/"), entry.path))
                    else:
                        folders.append(entry.path)
        except OSError as error:
            yield folder, -1, ("unreadable", error.strerror or str(error))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _file(entry: os.DirEntry) -> tuple[str, int, tuple[str, str] | None]:
    try:
        if entry.is_file():
            return entry.path, entry.stat().st_size, None
        return entry.path, -1, ("unreadable", "neither a file nor a folder")
    except OSError as error:
        return entry.path, -1, ("unreadable", error.strerror or str(error))
