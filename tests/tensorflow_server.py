"""A TensorFlow server whose process has no Python of ours: a TPU slice's host, as far as its input is concerned."""

import sys
from collections.abc import Sequence

_SOURCE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pipeline", "beam"):
            raise ImportError("this host has no Python of ours")

sys.meta_path.insert(0, Refuse())
import tensorflow as tf

tf.py_function = tf.numpy_function = None
addresses, task = sys.argv[1].split(","), int(sys.argv[2])
server = tf.distribute.Server(tf.train.ClusterSpec({"worker": addresses}), job_name="worker", task_index=task)
print("ready", flush=True)
server.join()
"""


def command(addresses: Sequence[str], task: int) -> list[str]:
    """The command of the server of `task` in a cluster; it prints `ready` when it is."""
    return [sys.executable, "-P", "-c", _SOURCE, ",".join(addresses), str(task)]
