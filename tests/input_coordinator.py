"""A coordinator under a real TPUStrategy whose hosts are TensorFlow servers elsewhere; `test_hosts.py` starts it.

    python -m tests.input_coordinator DIRECTORY EPOCHS STATE ADDRESS...

Each step takes a batch of every host and adds its slots, as [id, epoch, weight], to the state, a JSON file that is
written after every fourth step and from which the coordinator continues.
"""

import json
import os
import sys

import tensorflow as tf

from pipeline import files
from pipeline.data import input as inputs
from pipeline.data import reader
from pipeline.data.order import EpochBudget
from pipeline.tpu import made_up_devices
from pipeline.train import distribution
from pipeline.train.controller import explained_errors

BATCH = 16


def budget(records: reader.RecordSet, epochs: int) -> EpochBudget:
    """Epochs in batches of 16."""
    return EpochBudget(records.order(BATCH, seed=0, block=4, window=8), BATCH, epochs)


def view(examples: tf.data.Dataset) -> tf.data.Dataset:
    """What the ledger needs, with a decoded image."""
    return examples.map(
        lambda example: {
            "image": tf.io.decode_image(example["image"])[:8, :8],
            **{name: example[name] for name in ("id", "epoch", "weight")},
        }
    )


def main(directory: str, epochs: str, state_path: str, *addresses: str) -> None:
    # As for a TPU, the first host is where operations run that say nothing else: no host can reach this process.
    cluster = tf.train.ClusterSpec({"worker": list(addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, master=addresses[0])
    tf.config.experimental_connect_to_cluster(resolver, protocol="grpc")
    devices = [f"/job:worker/replica:0/task:{task}/device:CPU:0" for task in range(len(addresses))]
    with made_up_devices.instead_of_a_tpu(len(devices), len(devices), devices):
        strategy = distribution.create("tpu")
    records = reader.RecordSet(directory, "train")
    plan = budget(records, int(epochs))
    steps = []
    if os.path.exists(state_path):
        with open(state_path) as file:
            steps = json.load(file)
    print(f"starting at step {len(steps)}", flush=True)

    @tf.function(autograph=False)
    def next_step(iterator):
        batch = next(iterator)
        return {name: strategy.experimental_local_results(batch[name]) for name in ("id", "epoch", "weight")}

    with explained_errors(strategy):
        iterator = iter(inputs.distributed_batches(strategy, records, plan, view, BATCH, first_step=len(steps)))
        while len(steps) < plan.steps:
            parts = next_step(iterator)
            columns = [[part.numpy().tolist() for part in parts[name]] for name in ("id", "epoch", "weight")]
            steps.append([list(zip(*host, strict=True)) for host in zip(*columns, strict=True)])
            if len(steps) % 4 == 0 or len(steps) == plan.steps:
                files.write_atomically(state_path, json.dumps(steps))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (distribution.HostLostError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)  # as pipeline/main.py does where a host is lost
