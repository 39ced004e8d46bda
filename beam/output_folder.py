"""Where a build writes, so that no finished record set is lost: into its folder, or beside the set that is there.

A folder that holds a finished set keeps it until another one is whole. That one is built in `FOLDER.replacement`, from
links to the shards that it may share with the old one, and then the two folders exchange their names.
"""

import ctypes
import json
import os
import re
import shutil
from collections.abc import Callable

import tensorflow as tf

from beam import build_report, finalize, shards
from beam.errors import BuildError
from beam.options import LIMITS, BuildOptions
from pipeline import files
from pipeline.data import manifest, statistics

SETTINGS = "build.json"  # the flags of a build that decide what it writes
_PRICES = ("core_hour_price", "shuffle_gib_price", "request_price")
_NOT_OF_THE_SET = ("output_dir", "replace", "retry_rejected", "dry_run_images", *_PRICES)
_PATHS = ("input", "validation_input", "test_input", "classes", "classes_of", "remove_duplicates_of")
# Written at the end of a build, some of them in place: they must not be links to the files of another set.
_NAMES = (manifest.FILE, SETTINGS, finalize.REJECTED, finalize.DUPLICATES, statistics.FILE, build_report.FILE)
_TFDS_FILES = r"dataset_info\.json|features\.json|\w+\.labels\.txt"
_MARK = "unfinished_replacement"  # in a folder beside the set, while it is ours to remove
_OF_EVERY_SET = "|".join([*map(re.escape, _NAMES), build_report.PICTURES, _TFDS_FILES, _MARK])
_CURRENT_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def choose(options: BuildOptions) -> str:
    """The folder to build in: `--output_dir`, or another one beside it if that holds a finished set. Changes nothing.

    Raises:
      BuildError: `--output_dir` holds a set that another command built, and `--replace` is not given; or it cannot be
        exchanged for another folder.
    """
    output = _real(options.output_dir)
    if not tf.io.gfile.exists(os.path.join(output, manifest.FILE)):
        return output
    differences = _differences(output, _settings(options), options.retry_rejected)
    if differences and not options.replace:
        raise BuildError(
            f"--output_dir={options.output_dir} holds {_description(output)}, which another command built: "
            f"{'; '.join(differences)}. Nothing was changed. Give another --output_dir, or add --replace: the set "
            "that is there then stays until the new one is whole."
        )
    if not files.is_remote(output):
        return _replacement(output)
    if differences:
        raise BuildError(
            f"--replace: {options.output_dir} is not on this machine's disk, where folders could be exchanged: "
            "give another --output_dir, and remove the old set when the new one is whole."
        )
    return output


def begin(options: BuildOptions, folder: str) -> None:
    """Makes `folder` ready for the build: with its settings, and the shards that it may share with an earlier set."""
    output, settings = _real(options.output_dir), _settings(options)
    files.make_folder(folder)
    if folder != output:
        _link_shards(output, folder, settings)
    elif tf.io.gfile.exists(previous := os.path.join(output, manifest.FILE)):
        tf.io.gfile.remove(previous)  # remote, and the same build: from here until the new one, there is no record set
    files.write_atomically(os.path.join(folder, SETTINGS), json.dumps(settings, indent=1, sort_keys=True) + "\n")


def finish(options: BuildOptions, folder: str) -> None:
    """Exchanges a complete build in `folder` for the set in `--output_dir`, and removes that one.

    Files of others in `--output_dir` stay there.

    Raises:
      BuildError: the new set has other classes, and `--replace` is not given; both sets are still there.
    """
    output = _real(options.output_dir)
    if folder == output:
        return
    new, old = manifest.read(folder), _manifest(output)
    if not options.replace and old and old.classes != new.classes:
        raise BuildError(
            f"The classes of --input changed ({_changed(old.classes, new.classes)}), so labels have other numbers "
            f"than in {options.output_dir}, which is unchanged. The same command with --replace puts the new set there."
        )
    _link_others(output, folder, {new.name} | ({old.name} if old else set()))
    _mark(output)
    _exchange(output, folder)
    os.remove(os.path.join(output, _MARK))
    _remove(folder)


def unchanged(options: BuildOptions, folder: str) -> str:
    """What to add to the message of a build that failed in `folder`."""
    if folder == _real(options.output_dir):
        return ""
    return (
        f" The record set in {options.output_dir} is unchanged; the same command goes on with the new one in {folder}, "
        "which may be removed."
    )


def complete_exchange(options: BuildOptions) -> None:
    """Ends an exchange of folders that was killed between its two steps (see `_exchange`)."""
    output = _real(options.output_dir)
    if files.is_remote(output):
        return
    if _is_marked(_aside(output)):
        if os.path.exists(output):
            _remove(_aside(output))
        else:
            os.rename(_aside(output), output)
    if _is_marked(output):
        os.remove(os.path.join(output, _MARK))


def _real(path: str) -> str:
    return path if files.is_remote(path) else os.path.realpath(path)


def _replacement(output: str) -> str:
    if os.path.ismount(output) or not os.access(os.path.dirname(output), os.W_OK):
        raise BuildError(
            f"{output} holds a finished set, and a new one must be built beside it, but "
            f"{'it is a mount point' if os.path.ismount(output) else 'its parent folder cannot be written'}: "
            "give another --output_dir."
        )
    folder = f"{output}.replacement"
    if os.path.exists(folder) and not _is_marked(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise BuildError(
            f"{output} holds a finished set, and a new one must be built beside it, in {folder}, which exists and "
            "was not made by a build: rename it, or give another --output_dir."
        )
    return folder


def _mark(folder: str) -> None:
    open(os.path.join(folder, _MARK), "w").close()


def _is_marked(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, _MARK))


def _remove(folder: str) -> None:
    """Removes a marked folder, its mark last: so a removal that is killed can be completed."""
    for entry in os.scandir(folder):
        if entry.name != _MARK:
            (shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.remove)(entry.path)
    shutil.rmtree(folder)


def _settings(options: BuildOptions) -> dict:
    """The flags that decide what is written: those that are not at their default."""
    settings = {}
    for name, default in BuildOptions.flags().items():
        value = getattr(options, name)
        if name not in _NOT_OF_THE_SET and (value != default or name == "name"):
            settings[name] = value
    for name in _PATHS:
        if value := settings.get(name):
            settings[name] = [_place(path) for path in value] if isinstance(value, list) else _place(value)
    return settings


def _place(path: str) -> str:
    """A path that means the same from another working folder."""
    return path if ":" in path.split("/")[0] else os.path.abspath(path)


def _manifest(folder: str) -> manifest.Manifest | None:
    try:
        return manifest.read(folder)
    except manifest.ManifestError:
        return None


def _description(folder: str) -> str:
    if (present := _manifest(folder)) is None:
        return f"a record set whose {manifest.FILE} is damaged"
    splits = ", ".join(f"{name} {split.written:,}" for name, split in present.splits.items())
    return f"the finished record set {present.name!r} ({len(present.classes):,} classes; images: {splits})"


def _differences(folder: str, settings: dict, retry_rejected: bool) -> list[str]:
    """What the command that built the set in `folder` said otherwise, in words."""
    try:
        with files.opened(os.path.join(folder, SETTINGS), "r") as file:
            before = json.load(file)
    except (OSError, tf.errors.OpError, ValueError):
        return [f"it has no {SETTINGS}, which would say how it was built"]
    may_change = LIMITS if retry_rejected else ()
    return [
        f"--{name} was {_value(before, name)}, and is {_value(settings, name)}"
        for name in BuildOptions.flags()
        if name not in may_change and before.get(name) != settings.get(name)
    ]


def _value(settings: dict, name: str) -> str:
    return str(settings[name]) if name in settings else "not given"


def _changed(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    added, removed = [c for c in new if c not in old], [c for c in old if c not in new]
    parts = [f"{len(names)} {word}: {', '.join(names[:3])}" for names, word in ((added, "new"), (removed, "gone"))]
    return "; ".join(part for part, names in zip(parts, (added, removed), strict=True) if names) or "in another order"


def _files_of(names: set[str]) -> re.Pattern:
    """Matches the files that builds of these names leave: shards, what is beside them, and what describes the set."""
    return re.compile(rf"({shards.file_pattern(names)}|{_OF_EVERY_SET})({files.PARTIAL})?")


def _link_shards(output: str, folder: str, settings: dict) -> None:
    """Begins the build in `folder` with the shards of the set in `output`, unless it began there before.

    Shards are never written in place, so a link and the file that it shares are as good as a copy.
    """
    try:
        with open(os.path.join(folder, SETTINGS)) as file:
            if json.load(file) == settings:
                return
    except (OSError, ValueError):
        pass
    _remove(folder)
    os.mkdir(folder)
    _mark(folder)
    kept = re.compile(shards.file_pattern([settings["name"]]))
    _link_tree(output, folder, lambda name: kept.fullmatch(name) is not None)


def _link_others(output: str, folder: str, names: set[str]) -> None:
    """Links what is in `output` beside the set of one of these names into `folder`."""
    ours = _files_of(names)
    _link_tree(output, folder, lambda name: ours.fullmatch(name) is None)


def _link_tree(source: str, target: str, chosen: Callable[[str], bool]) -> None:
    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not chosen(name)] if folder == source else []

    shutil.copytree(source, target, symlinks=True, ignore=ignored, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        os.remove(target)
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _exchange(output: str, folder: str) -> None:
    """Gives two folders each other's names: at once where the system can (Linux), else in two steps.

    Killed between the two steps, `output` is missing until `complete_exchange` puts it back.
    """
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if exchange and not exchange(_CURRENT_FOLDER, os.fsencode(output), _CURRENT_FOLDER, os.fsencode(folder), _EXCHANGE):
        return
    os.rename(output, _aside(output))
    os.rename(folder, output)
    os.rename(_aside(output), folder)


def _aside(output: str) -> str:
    return f"{output}.replaced"
