"""Folder trees: every file below a folder is an image, and the first folder names its class."""

import heapq
import os
from collections.abc import Collection, Iterator, Mapping

from beam import files, splits
from beam.errors import BuildError
from beam.examples import SourceExample, label_text, name_bytes, text
from beam.sources.source import Source

_NO_CLASS = ("no_label", "is beside the class folders, not in one")
_NO_SPLIT = ("no_label", "is beside the folders of the splits, not in one (--splits=none reads them as classes)")
_BESIDE_SPLITS = "/"  # a part of a remote folder
_REMOTE_SPLITS = frozenset(form for name in splits.NAMES for form in (name, name.capitalize(), name.upper()))


class FolderSource(Source):
    """A folder of class folders, each with images at any depth; a part is a class folder, or "": what is beside them.

    A tree in an object store is one part, because listing it is one request after the other anyway.
    """

    name = "a folder tree"
    help = "a folder of class folders"

    @classmethod
    def recognizes(cls, path: str) -> bool:
        return files.exists(path) if files.is_remote(path) else os.path.isdir(path)

    @classmethod
    def open(cls, path: str, flags: Mapping[str, str]) -> "FolderSource":
        layout = f"expected {path}/CLASS/IMAGE.jpg and the like"
        if files.is_remote(path):
            _check_that_trees_are_listed(path)
            if next(files.walk(path), None) is None:
                raise BuildError(f"--input={path} holds no file: {layout}.")
            return cls(path, ("",))
        classes = _folders(path)
        if not classes:
            raise BuildError(f"--input={path} holds no class folders: {layout}.")
        if empty := [name for name in classes if next(_files(os.path.join(path, name)), None) is None]:
            some = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
            raise BuildError(
                f"--input={path}: {len(empty)} of {len(classes)} class folders hold no image ({some}): "
                "add images, or remove the folder."
            )
        return cls(path, ("", *classes))

    @classmethod
    def splits_of(cls, path: str) -> list[tuple[str, str, str]]:
        """The folders `train`, `val` or `validation`, and `test`, where these hold the class folders.

        Raises:
          BuildError: there are other folders beside them, one holds no class folders, or two are of one split.
        """
        folders = _remote_split_folders(path) if files.is_remote(path) else _folders(path)
        as_splits = {name: split for name in folders if (split := splits.named(name))}
        nested = [name for name in as_splits if _holds_folders(files.join(path, name))]
        others = [name for name in folders if name not in as_splits]
        if not as_splits or (others and len(nested) < 2):
            return []
        found, keep = ", ".join(f"{name}/" for name in as_splits), "with --splits=none they are classes"
        if others:
            raise BuildError(
                f"--input={path} holds {found}, which look like splits, beside {others[0]!r}"
                f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}: move the others elsewhere; {keep}."
            )
        if flat := [name for name in as_splits if name not in nested]:
            if len(as_splits) == 1:
                return []
            raise BuildError(
                f"--input={path} holds {found}, which look like splits, but {flat[0]}/ has no class folders: expected "
                f"{path}/{flat[0]}/CLASS/IMAGE.jpg and the like. Name one split alone (--input={path}/NAME), or move "
                f"{flat[0]}/ elsewhere; {keep}."
            )
        if len(set(as_splits.values())) < len(as_splits):
            raise BuildError(f"--input={path} holds {found}, two of them for one split: join or move one; {keep}.")
        return [
            (as_splits[n], f"{n}/", files.join(path, n))
            for n in sorted(nested, key=lambda n: splits.SPLITS.index(as_splits[n]))
        ]

    @classmethod
    def beside_splits(cls, path: str) -> list[Source]:
        """The files beside the folders of the splits; in an object store those in other folders, too."""
        if files.is_remote(path):
            return [cls(path, (_BESIDE_SPLITS,))]
        return [cls(path, ("",))] if next(_beside_class_folders(path), None) else []

    def examples(self, part: str) -> Iterator[SourceExample]:
        """The images of a part; hidden files and folders (`.name`) are not listed."""
        if files.is_remote(self.path):
            return _remote_beside_splits(self.path) if part == _BESIDE_SPLITS else _remote_tree(self.path)
        return _class_folder(self.path, part) if part else _beside_class_folders(self.path)

    def label_order(self, names: Collection[str]) -> list[str]:
        """By name."""
        return sorted(names)


def _folders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if _is_folder(e) and not e.name.startswith("."))


def _check_that_trees_are_listed(path: str) -> None:
    if not files.lists_trees(path):
        scheme = path.partition("://")[0]
        raise BuildError(
            f"--input={path}: Beam lists {scheme}:// one folder at a time, so it reads no folder tree there: give "
            "tables (.csv, .jsonl, .parquet) of the images' paths, or tars."
        )


def _remote_split_folders(path: str) -> list[str]:
    """Those folders that are named as splits: to list all would be to list every image."""
    _check_that_trees_are_listed(path)
    return [name for name in sorted(_REMOTE_SPLITS) if next(files.walk(files.join(path, name)), None) is not None]


def _holds_folders(path: str) -> bool:
    if not files.is_remote(path):
        return bool(_folders(path))
    first, _ = next(files.walk(path))
    return "/" in first[len(path.rstrip("/")) + 1 :]


def _class_folder(root: str, folder: str) -> Iterator[SourceExample]:
    labels, start = (label_text(folder),), len(os.path.join(root, ""))
    for file, size, refusal in _files(os.path.join(root, folder)):
        key = name_bytes(file[start:])
        yield SourceExample(key, name_bytes(file), size=size, labels=labels, weights=(1.0,), refusal=refusal)


def _beside_class_folders(root: str) -> Iterator[SourceExample]:
    with os.scandir(root) as entries:
        for entry in entries:
            if not _is_folder(entry) and not entry.name.startswith("."):
                yield SourceExample(name_bytes(entry.name), name_bytes(entry.path), refusal=_NO_CLASS)


def _remote_tree(root: str) -> Iterator[SourceExample]:
    for path, size in files.walk(root):
        key = path[len(root.rstrip("/")) + 1 :]
        steps = key.split("/")
        if any(step.startswith(".") for step in steps):
            continue
        example = SourceExample(name_bytes(key), name_bytes(path), size=size)
        if len(steps) == 1:
            yield example._replace(refusal=_NO_CLASS)
        else:
            yield example._replace(labels=(label_text(steps[0]),), weights=(1.0,))


def _remote_beside_splits(root: str) -> Iterator[SourceExample]:
    for example in _remote_tree(root):
        folder, slash, _ = text(example.key).partition("/")
        if not slash:
            yield example
        elif folder not in _REMOTE_SPLITS:
            yield example._replace(labels=(), weights=(), refusal=_NO_SPLIT)


def _files(folder: str) -> Iterator[tuple[str, int, tuple[str, str] | None]]:
    """(path, size, refusal) of every file below `folder`, through symbolic links, but in no folder twice.

    Links to folders wait until all real folders are listed, and are then followed in a fixed order, the shortest path
    first: so the path under which a folder is listed is the same on every machine.
    """
    listed, folders = set(), [folder]
    links: list[tuple[int, str]] = []
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
