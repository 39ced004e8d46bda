"""Checkpoints that exist whole or not at all.

A checkpoint is a folder `step-00001200/` with the variables (a TensorFlow checkpoint whose keys are
`GROUP/VARIABLE NAME`) and, written last, `checkpoint.json`: the step, facts of the run, the size of every other file,
and the SHA-256 of TensorFlow's index, which holds a CRC of each variable. So the variables, which hosts of a TPU slice
write themselves, need not be read back. A folder without a `checkpoint.json` that fits is half-written or damaged, and
is skipped with a warning.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from pipeline import files
from pipeline.errors import cause

FORMAT = 1
NEWEST, BEST = "newest", "best"  # the best one is in a folder of this name in the run's
COMMIT_FILE = "checkpoint.json"
_PREFIX = "variables"
_KEY_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"

State = Mapping[str, Mapping[str, tf.Variable]]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, is damaged, or does not fit what it should be restored into."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A committed checkpoint: its folder, its step and the facts of the run that were saved with it."""

    path: str
    step: int
    facts: dict
    time: float

    @property
    def prefix(self) -> str:
        """The prefix that `tf.train.load_checkpoint` takes."""
        return os.path.join(self.path, _PREFIX)


def folder(directory: str, step: int) -> str:
    """The folder of the checkpoint of `step`."""
    return os.path.join(directory, f"step-{step:08d}")


class Writer:
    """Writes checkpoints of `state` (group name to variable name to variable) into `directory`.

    With `background=True` the variables are copied and the files are written and committed during training;
    `wait` waits for the last one. A failed write raises at the next call.
    """

    def __init__(self, directory: str, state: State, background: bool = False):
        self.directory = files.absolute(directory)
        self._checkpoint = tf.train.Checkpoint(**{group: dict(variables) for group, variables in state.items()})
        self._background = background
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None

    def save(self, step: int, facts: Mapping[str, object]) -> str:
        """Saves the state as the checkpoint of `step`; returns its folder.

        Raises:
          CheckpointError: it could not be written (no space, no permission); nothing half-written is left.
        """
        self.wait()
        path = folder(self.directory, step)
        if tf.io.gfile.exists(path):
            files.remove_folder(path)
        tf.io.gfile.makedirs(path)
        with _failing_cleanly(path):
            options = tf.train.CheckpointOptions(enable_async=self._background)
            self._checkpoint.write(os.path.join(path, _PREFIX), options)
        self._pending = self._thread.submit(self._finish, path, step, dict(facts))
        if not self._background:
            self.wait()
        return path

    def wait(self) -> None:
        """Waits until the last checkpoint is committed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _finish(self, path: str, step: int, facts: Mapping[str, object]) -> None:
        with _failing_cleanly(path):
            self._checkpoint.sync()
            _raise_error_of(self._checkpoint)
            _commit(path, step, facts)


def _raise_error_of(checkpoint: tf.train.Checkpoint) -> None:
    """Raises what went wrong in the last background write: `sync` keeps it for the next one, which is too late."""
    helper = getattr(checkpoint, "_async_checkpointer_impl", None)
    if helper is not None:
        helper._check_async_thread_error()


@contextlib.contextmanager
def _failing_cleanly(path: str) -> Iterator[None]:
    """Removes `path` and raises a CheckpointError where the body cannot write."""
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        if tf.io.gfile.exists(path):
            files.remove_folder(path)
        raise CheckpointError(
            f"Could not write the checkpoint {path}: {cause(error)}. Earlier checkpoints are whole; make "
            "room or fix the permissions, and run the same command again to continue from the last one."
        ) from error


def _commit(path: str, step: int, facts: Mapping[str, object]) -> None:
    names = sorted(tf.io.gfile.listdir(path))
    if f"{_PREFIX}.index" not in names:  # TensorFlow writes it last
        raise OSError(f"TensorFlow left only {names or 'nothing'}")
    written = {name: _file_facts(os.path.join(path, name)) for name in names}
    content = {"format": FORMAT, "step": step, "time": time.time(), "facts": facts, "files": written}
    files.write_atomically(os.path.join(path, COMMIT_FILE), json.dumps(content, indent=1))


def _file_facts(path: str) -> dict:
    facts = {"bytes": tf.io.gfile.stat(path).length}
    if path.endswith(".index"):
        with tf.io.gfile.GFile(path, "rb") as file:
            facts["sha256"] = hashlib.sha256(file.read()).hexdigest()
    return facts


def open_checkpoint(path: str, verify: bool = True) -> Saved:
    """Reads the checkpoint in the folder `path`, and verifies its files; with `verify`, reads every variable for it.

    Raises:
      CheckpointError: it is missing, half-written or damaged; says how.
    """
    commit = os.path.join(path, COMMIT_FILE)
    if not tf.io.gfile.exists(commit):
        raise CheckpointError(f"{path} is not a checkpoint: it has no {COMMIT_FILE} (half-written, or another folder).")
    try:
        with tf.io.gfile.GFile(commit) as file:
            content = json.load(file)
        written, step = content["files"], content["step"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{commit} is damaged: {error}.") from error
    if content["format"] != FORMAT:
        raise CheckpointError(f"{commit} has format {content['format']}; this version reads format {FORMAT}.")
    for name, expected in written.items():
        file_path = os.path.join(path, name)
        found = _file_facts(file_path) if tf.io.gfile.exists(file_path) else {}
        if not found or not found.items() <= expected.items():
            raise CheckpointError(f"{file_path} is damaged: expected {expected}, found {found or 'nothing'}.")
    saved = Saved(path, step, content["facts"], content["time"])
    if verify:
        _check_variables(saved)
    return saved


def _check_variables(saved: Saved) -> None:
    """Raises a CheckpointError where a variable does not have its CRC."""
    reader = tf.train.load_checkpoint(saved.prefix)
    for key in reader.get_variable_to_shape_map():
        try:
            reader.get_tensor(key)
        except tf.errors.OpError as error:
            raise CheckpointError(f"{saved.path} is damaged at {_name(key)}: {cause(error)}.") from None


def checkpoints(directory: str) -> list[str]:
    """Folders of all checkpoints in `directory`, committed or not, oldest step first."""
    if not tf.io.gfile.exists(directory):  # `isdir` would also be false where an object store is out of reach
        return []
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]
    steps = {int(name.split("-")[1]): name for name in names if re.fullmatch(r"step-\d{8,}", name)}
    return [os.path.join(directory, name) for _, name in sorted(steps.items())]


def latest(directory: str, verify: bool = True) -> Saved | None:
    """The newest whole checkpoint in `directory`, None where there is none; damaged ones are skipped with a warning.

    `verify` as of `open_checkpoint`.
    """
    for path in reversed(checkpoints(directory)):
        try:
            return open_checkpoint(path, verify)
        except CheckpointError as error:
            logging.warning("Skipping a checkpoint that is not whole: %s", error)
    return None


def find(path: str, which: str = NEWEST, verify: bool = True) -> Saved:
    """The checkpoint at `path`: a checkpoint's own folder, or a run's or an import's folder.

    Args:
      path: of the folder.
      which: of a run's checkpoints, 'newest', or 'best': that with the lowest validation loss, if the run keeps it.
      verify: as of `open_checkpoint`; for its facts alone, the variables need not be read.

    Raises:
      CheckpointError: there is none.
    """
    if which not in (NEWEST, BEST):
        raise ValueError(f"which_checkpoint is {which!r}; expected {NEWEST!r} or {BEST!r}.")
    if which == BEST and (saved := latest(os.path.join(path, BEST), verify)):
        return saved
    if tf.io.gfile.exists(os.path.join(path, COMMIT_FILE)):
        return open_checkpoint(path, verify)
    saved = latest(os.path.join(path, "checkpoints"), verify) or latest(path, verify)
    if saved is None:
        what = "holds no whole checkpoint" if tf.io.gfile.exists(path) else "does not exist"
        raise CheckpointError(f"{path} {what}: give the folder of a run, or of one of its checkpoints.")
    return saved


def prune(directory: str, keep: int, keep_every_hours: float) -> None:
    """Removes old checkpoints: the newest `keep` stay, and of the older ones one every `keep_every_hours` (0: none).

    Half-written ones count for nothing and go; call it while none is being written.
    """
    paths = checkpoints(directory)
    committed = [path for path in paths if tf.io.gfile.exists(os.path.join(path, COMMIT_FILE))]
    for path in set(paths).difference(committed):
        files.remove_folder(path)
    last_kept = -np.inf
    for path in committed[:-keep]:
        try:
            with tf.io.gfile.GFile(os.path.join(path, COMMIT_FILE)) as file:
                saved_time = json.load(file)["time"]
        except (tf.errors.OpError, json.JSONDecodeError, KeyError):
            saved_time = -np.inf
        if keep_every_hours and saved_time - last_kept >= 3600 * keep_every_hours:
            last_kept = saved_time
        else:
            tf.io.gfile.remove(os.path.join(path, COMMIT_FILE))  # first, so that what is left is no checkpoint
            files.remove_folder(path)


def copy(path: str, directory: str) -> str:
    """Copies the committed checkpoint at `path` into `directory`, commit file last; returns its new folder."""
    saved = open_checkpoint(path, verify=False)
    target = folder(directory, saved.step)
    if tf.io.gfile.exists(target):
        files.remove_folder(target)
    tf.io.gfile.makedirs(target)
    for name in sorted(tf.io.gfile.listdir(path), key=lambda name: name == COMMIT_FILE):
        tf.io.gfile.copy(os.path.join(path, name), os.path.join(target, name))
    return target


def variables(saved: Saved) -> dict[str, tuple[int, ...]]:
    """`GROUP/VARIABLE NAME` to shape of every variable in the checkpoint."""
    shapes = tf.train.load_checkpoint(saved.prefix).get_variable_to_shape_map()
    names = {_name(key): tuple(shape) for key, shape in shapes.items() if key.endswith(_KEY_SUFFIX)}
    return {name: shape for name, shape in names.items() if "/" in name}  # save_counter belongs to TensorFlow


def arrays(saved: Saved, group: str) -> dict[str, np.ndarray]:
    """Variable name to value of one group of the checkpoint."""
    reader = tf.train.load_checkpoint(saved.prefix)
    keys = [key for key in reader.get_variable_to_shape_map() if key.endswith(_KEY_SUFFIX)]
    return {_name(key)[len(group) + 1 :]: reader.get_tensor(key) for key in keys if _name(key).startswith(f"{group}/")}


def restore(saved: Saved, state: State) -> None:
    """Restores all of `state`, in the strategy's scope.

    Raises:
      CheckpointError: names every variable that the checkpoint lacks, has too many, or has in another shape.
    """
    expected = {f"{group}/{name}": tuple(v.shape) for group, members in state.items() for name, v in members.items()}
    if problems := differences(expected, variables(saved)):
        raise CheckpointError(f"{saved.path} does not fit this model:\n  {shown(problems)}")
    checkpoint = tf.train.Checkpoint(**{group: dict(members) for group, members in state.items()})
    checkpoint.read(saved.prefix).assert_existing_objects_matched().expect_partial()  # save_counter is TensorFlow's


def differences(expected: Mapping[str, tuple], found: Mapping[str, tuple]) -> list[str]:
    """How two sets of variables (name to shape) differ, a line each; empty where they fit."""
    return (
        [
            f"{name} has shape {found[name]} in the checkpoint and {expected[name]} in the model"
            for name in sorted(expected.keys() & found.keys())
            if expected[name] != found[name]
        ]
        + [f"{name} {expected[name]} is not in the checkpoint" for name in sorted(expected.keys() - found.keys())]
        + [f"{name} {found[name]} has no place in the model" for name in sorted(found.keys() - expected.keys())]
    )


def shown(problems: Sequence[str], most: int = 10) -> str:
    """The first of `problems` and how many more there are, a line each."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([*problems[:most], *more])


def _name(key: str) -> str:
    """Undoes TensorFlow's escaping of `/` and `.` in a checkpoint key."""
    escaped = key.removesuffix(_KEY_SUFFIX)
    return re.sub(r"\.(.)", lambda match: {"S": "/", ".": "."}[match.group(1)], escaped)
