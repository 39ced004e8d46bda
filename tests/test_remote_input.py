"""The input runs in TensorFlow servers of other processes, which never import this project."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from pipeline.data import manifest, reader
from tests import input_client, record_sets, tensorflow_server

EXAMPLES = 203
ROOT = pathlib.Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}


def free_address():
    with socket.socket() as each:
        each.bind(("localhost", 0))
        return f"localhost:{each.getsockname()[1]}"


@pytest.fixture
def start_servers(tmp_path):
    """Starts servers, one for each address, and waits until all are ready."""
    processes = []

    def start(addresses):
        for task in range(len(addresses)):
            command = tensorflow_server.command(addresses, task)
            processes.append(
                subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
            )
        assert [process.stdout.readline().strip() for process in processes[-len(addresses) :]] == ["ready"] * len(
            addresses
        )
        return processes[-len(addresses) :]

    yield start
    for process in processes:
        process.kill()


def batches(tmp_path, records, addresses, first_step, last_step):
    """What hosts at `addresses` read: [id, epoch, weight] for each host, step and slot."""
    output = tmp_path / f"{first_step}-{last_step}.json"
    command = [sys.executable, "-m", "tests.input_client", records.directory, str(first_step), str(last_step)]
    done = subprocess.run(
        [*command, str(output), *addresses], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.mark.slow
def test_two_hosts_read_their_lanes_and_one_goes_on_when_the_other_dies(tmp_path, start_servers):
    record_sets.make(tmp_path / "records", examples=EXAMPLES, validation=5)
    records = reader.RecordSet(str(tmp_path / "records"), "train")
    plan = input_client.budget(records)
    alone = [
        np.stack([batch[name].astype(np.int64) for name in ("id", "epoch", "weight")], 1)
        for batch in reader.dataset(records, plan, input_client.view).as_numpy_iterator()
    ]
    half = plan.steps // 2

    two = [free_address(), free_address()]
    servers = start_servers(two)
    hosts = batches(tmp_path, records, two, 0, half)
    servers[1].kill()  # and the coordinator with it: the run starts again with the host that is left
    servers[1].wait()
    (rest,) = batches(tmp_path, records, two[:1], half, plan.steps)

    lanes = plan.order.lanes
    for step in range(half):
        expected = alone[step].reshape(-1, lanes, 3)
        for host, share in enumerate(hosts):
            own = expected[:, host * lanes // 2 : (host + 1) * lanes // 2].reshape(-1, 3)
            np.testing.assert_array_equal(as_array(share[step]), own)
    for step, batch in enumerate(rest, half):
        np.testing.assert_array_equal(as_array(batch), alone[step])

    slots = [slot for share in [*hosts, rest] for batch in share for slot in batch]
    for epoch in range(input_client.EPOCHS):
        ids = [i for i, of, weight in slots if of == epoch and weight]
        assert len(ids) == EXAMPLES
        assert manifest.checksum(ids) == records.split.id_checksum


def as_array(batch):
    """int64 [slots, 3]."""
    return np.array([[int(value) for value in slot] for slot in batch], np.int64)
