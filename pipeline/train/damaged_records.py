"""Records that were left out because they are damaged: named for good, whichever process met them and when."""

import json
import os
from collections.abc import Sequence

import tensorflow as tf

from pipeline import files
from pipeline.data import reader
from pipeline.train import distribution

FOLDER = "damaged"


class DamagedRecords:
    """Keeps the names of damaged records in `model_dir/damaged`, a file for each process.

    An interruption forgets nothing, and the chief knows what the other processes left out.
    """

    def __init__(self, model_dir: str, sets: Sequence[reader.RecordSet]):
        self._folder = os.path.join(model_dir, FOLDER)
        self._path = os.path.join(self._folder, f"{distribution.process():05d}.json")
        self._sets = sets
        self._written = set(_read(self._path)) if tf.io.gfile.exists(self._path) else set()

    def write(self) -> None:
        """Writes what this process has met since the last call."""
        met = self._written.union(*(records.damaged for records in self._sets))
        if met != self._written:
            tf.io.gfile.makedirs(self._folder)
            files.write_atomically(self._path, json.dumps(sorted(met), indent=1) + "\n")
            self._written = met

    def names(self) -> list[str]:
        """Shard, record and offset of every damaged record that any process wrote, sorted."""
        if not tf.io.gfile.exists(self._folder):
            return []
        files = [name for name in tf.io.gfile.listdir(self._folder) if name.endswith(".json")]
        return sorted(set().union(*(_read(os.path.join(self._folder, name)) for name in files)))


def _read(path: str) -> list[str]:
    with tf.io.gfile.GFile(path) as file:
        return json.load(file)
