"""A coordinator whose input runs in TensorFlow servers of other processes; `test_remote_input.py` starts it.

    python -m tests.input_client DIRECTORY FIRST_STEP LAST_STEP OUTPUT ADDRESS...

Writes a JSON list: for each host and step, the slots as [id, epoch, weight].
"""

import json
import sys

import tensorflow as tf

from pipeline.data import reader
from pipeline.data.order import EpochBudget

BATCH, EPOCHS = 16, 2


def budget(records: reader.RecordSet) -> EpochBudget:
    """Two epochs in batches of 16."""
    return EpochBudget(records.order(BATCH, seed=0, block=4), BATCH, EPOCHS)


def view(examples: tf.data.Dataset) -> tf.data.Dataset:
    """What the ledger needs, with a decoded image."""
    return examples.map(
        lambda example: {
            "image": tf.io.decode_image(example["image"])[:8, :8],
            **{name: example[name] for name in ("id", "epoch", "weight")},
        }
    )


def main(directory: str, first_step: str, last_step: str, output: str, *addresses: str) -> None:
    tf.config.experimental_connect_to_cluster(
        tf.train.ClusterSpec({"worker": list(addresses)}), protocol="grpc", job_name="coordinator"
    )
    records = reader.RecordSet(directory, "train")
    settings = {"first_step": int(first_step), "last_step": int(last_step), "hosts": len(addresses)}
    batches = []
    for host in range(len(addresses)):
        with tf.device(f"/job:worker/replica:0/task:{host}/device:CPU:0"):
            dataset = reader.dataset(records, budget(records), view, host=host, **settings)
            of_host = []
            for batch in dataset:
                assert f"task:{host}" in batch["id"].device, batch["id"].device
                columns = (batch[name].numpy().tolist() for name in ("id", "epoch", "weight"))
                of_host.append(list(zip(*columns, strict=True)))
            batches.append(of_host)
    with open(output, "w") as file:
        json.dump(batches, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
