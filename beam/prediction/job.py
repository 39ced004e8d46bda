"""What a batch prediction is, and the folder that it writes: a restart goes on with the same one, and no other."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow
import tensorflow as tf

from beam.errors import PredictionError
from beam.prediction import rows
from pipeline import files
from pipeline.serving import client, labels, metadata, servable, version_folder

JOB, SUMMARY = "job.json", "summary.json"
PREDICTIONS = "predictions"  # a folder of its own, which dataframe libraries read as a whole
_FORMAT = 1  # of the folder


@dataclasses.dataclass(frozen=True)
class Job:
    """What the workers need to know.

    Attributes:
      saved_model: the version folder.
      output: the folder of predictions.
      shards: how many files of predictions there are.
      of_records: whether the input is records; else image files.
      format: of the files, one of `rows.FORMATS`.
      batch_size: examples per call of the model.
      outputs: further columns, of 'probabilities' and 'features'.
      objective: name of what the model has learned, to compare with labels; '' without that.
      several_labels: whether the records may have several labels.
    """

    saved_model: str
    output: str
    shards: int
    of_records: bool = False
    format: str = rows.PARQUET
    batch_size: int = 32
    outputs: tuple[str, ...] = ()
    objective: str = ""
    several_labels: bool = False

    def path(self, index: int) -> str:
        """The file of predictions of one shard."""
        return os.path.join(self.output, PREDICTIONS, f"{index:05d}-of-{self.shards:05d}.{self.format}")

    @property
    def schema(self) -> pyarrow.Schema:
        """Of the files."""
        return rows.schema(self.of_records, self.outputs, bool(self.objective))


@dataclasses.dataclass(frozen=True)
class Model:
    """An exported version: its folder, its `metadata.json`, and the digest of that file, which has all others'."""

    path: str
    metadata: Mapping[str, Any]
    digest: str


def find_model(directory: str) -> Model:
    """The version that `client.find` finds.

    Raises:
      PredictionError: there is none, or it was exported by something else.
    """
    try:
        path = client.find(directory)
    except FileNotFoundError as error:
        raise PredictionError(f"--saved_model: {error}") from error
    file_name = os.path.join(path, version_folder.EXTRA, metadata.FILE)
    try:
        with files.opened(file_name, "rb") as file:
            content = file.read()
        described = json.loads(content)
    except (OSError, tf.errors.OpError, ValueError) as error:
        raise PredictionError(
            f"--saved_model={directory}: {path} was exported by something else, or by an earlier version: {file_name} "
            "is missing or damaged. Export the run again."
        ) from error
    expected = {servable.BYTES, servable.EXAMPLES, servable.FEATURES}
    if missing := sorted(expected - set(described["signatures"])):
        raise PredictionError(f"--saved_model={directory}: {path} has no signature {missing[0]!r}: export it again.")
    return Model(path, described, hashlib.sha256(content).hexdigest())


def class_names(model: Model) -> list[str]:
    """The names of the model's classes, in label order."""
    return labels.read(os.path.join(model.path, "assets", labels.FILE))


def description(job: Job, model: Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the file `JOB`: everything that decides the bytes of the predictions."""
    kept = ("shards", "format", "batch_size", "outputs", "objective")
    settings = {name: list(value) if isinstance(value := getattr(job, name), tuple) else value for name in kept}
    return {"version": _FORMAT, "saved_model": model.digest, **inputs, **settings}


def begin(folder: str, described: Mapping[str, Any]) -> None:
    """Makes the output folder, or checks that it is that of the same job.

    Raises:
      PredictionError: it holds something else; nothing was changed.
    """
    path = os.path.join(folder, JOB)
    if not tf.io.gfile.exists(path):
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)] if tf.io.gfile.isdir(folder) else []
        ours = re.compile(rf"{PREDICTIONS}|{re.escape(JOB)}{files.PARTIAL}")  # of one that was killed here
        if others := [name for name in names if not ours.fullmatch(name)]:
            raise PredictionError(
                f"--output={folder} holds files that are not of a batch prediction, such as {sorted(others)[0]!r}: "
                "give another folder, or an empty one."
            )
        files.make_folder(os.path.join(folder, PREDICTIONS))
        files.write_atomically(path, json.dumps(described, indent=1) + "\n", several_writers=True)
        return
    if differences := _differences(path, described):
        raise PredictionError(
            f"--output={folder} holds predictions of another job: {'; '.join(differences)}. Nothing was changed. Give "
            "another folder, or remove this one."
        )


def _differences(path: str, described: Mapping[str, Any]) -> list[str]:
    try:
        with files.opened(path, "r") as file:
            before = json.load(file)
    except ValueError:
        return [f"{path} is damaged"]
    return [
        f"{name} was {_shown(before.get(name))}, and is {_shown(described.get(name))}"
        for name in dict.fromkeys([*before, *described])
        if before.get(name) != described.get(name)
    ]


def _shown(value: Any) -> str:
    """A value for a person: of a digest the beginning tells it apart."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:8]}…"
    return "not given" if value in (None, "", []) else str(value)


def finish(output: str, listed: int, counts: Sequence[rows.Counts]) -> None:
    """Writes the file `SUMMARY`, and removes what killed workers have left half-written.

    Raises:
      PredictionError: examples got lost.
    """
    total = sum(counts, start=rows.Counts())
    if total.total != listed:
        raise PredictionError(
            f"{listed:,} images went in, but {total.total:,} came out ({total.predicted:,} predicted, "
            f"{total.invalid:,} invalid, {total.dead:,} dead): run the same command again when nothing else writes "
            "to the output folder."
        )
    for folder in (output, os.path.join(output, PREDICTIONS)):
        for name in tf.io.gfile.listdir(folder):
            if re.search(files.PARTIAL + "$", name):
                tf.io.gfile.remove(os.path.join(folder, name))
    summary = {"in": listed, **total._asdict()}
    files.write_atomically(os.path.join(output, SUMMARY), json.dumps(summary, indent=1) + "\n", several_writers=True)


def read_summary(output: str) -> rows.Counts:
    """The counts that `finish` has written."""
    with files.opened(os.path.join(output, SUMMARY), "r") as file:
        summary = json.load(file)
    return rows.Counts(*(summary[name] for name in rows.Counts._fields))
