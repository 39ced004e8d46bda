"""Records that were left out because they are damaged: named for good, whichever process met them and when."""

import json
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from pipeline import files
from pipeline.data.reader import RecordSet
from pipeline.train import distribution

FOLDER = "damaged"


class DamagedRecords:
    """An action that keeps the names of damaged records in `model_dir/damaged`, a file for each process.

    An interruption forgets nothing, and the chief knows what the other processes left out.
    """

    def __init__(self, model_dir: str, strategy: tf.distribute.Strategy, sets: Sequence[RecordSet]):
        self._folder = os.path.join(model_dir, FOLDER)
        self._path = os.path.join(self._folder, f"{distribution.process():05d}.json")
        self._strategy, self._sets = strategy, sets
        self._written = set(_read(self._path)) if tf.io.gfile.exists(self._path) else set()

    def __call__(self, output: Mapping[str, float] | None = None) -> None:
        """Writes what this process has met since the last call; returns when every process has."""
        names = self._written.union(*(records.damaged for records in self._sets))
        if names != self._written:
            files.make_folder(self._folder)
            files.write_atomically(self._path, json.dumps(sorted(names), indent=1) + "\n")
            self._written = names
        distribution.of_all_processes(self._strategy, 0)

    def names(self) -> list[str]:
        """Shard, record and offset of every damaged record that any process wrote, sorted."""
        if not tf.io.gfile.exists(self._folder):
            return []
        names = [name for name in tf.io.gfile.listdir(self._folder) if name.endswith(".json")]
        return sorted(set().union(*(_read(os.path.join(self._folder, name)) for name in names)))


def _read(path: str) -> list[str]:
    with files.opened(path, "r") as file:
        return json.load(file)
