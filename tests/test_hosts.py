"""Hosts in network namespaces of their own, with records in an object store that they share: input and whole runs."""

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.data import manifest, reader, record, shard
from tests import gcs_server, input_coordinator, namespaces, record_sets, tensorflow_server

pytestmark = pytest.mark.slow
EXAMPLES, PORT = 203, 2222
READAHEAD = 8  # bytes: fewer than any record


class Hosts:
    """A machine that starts programs, which is also the object store, and two hosts beside it."""

    def __init__(self, network, folder):
        self.machine, *self.hosts = network.hosts
        self.folder, self.state = folder, folder / "state.json"
        self.environment = gcs_server.serve(network, folder)
        # Every read is a request of exactly its bytes, so that the store's log says what each host has read.
        self.environment["GCS_READAHEAD_BUFFER_SIZE_BYTES"] = str(READAHEAD)

    def start_servers(self, count):
        """TensorFlow's servers, one on each of the first `count` hosts; returns processes and addresses."""
        addresses = [f"{host.address}:{PORT}" for host in self.hosts[:count]]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "env": self.environment}
        servers = [
            host.start(tensorflow_server.command(addresses, task), "/", **output)
            for task, host in enumerate(self.hosts[:count])
        ]
        assert [server.stdout.readline() for server in servers] == ["ready\n"] * count
        return servers, addresses

    def start_coordinator(self, epochs, addresses, records="gs://bucket/records"):
        """The process that takes the steps."""
        command = [sys.executable, "-m", "tests.input_coordinator", records, str(epochs), self.state, *addresses]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": self.environment}
        return self.machine.start(command, **output)

    def steps(self):
        """What the coordinator has taken, int64 [hosts, slots, 3] for each step."""
        saved = json.loads(self.state.read_text()) if self.state.exists() else []
        return [np.array([[[int(v) for v in slot] for slot in host] for host in step], np.int64) for step in saved]


@pytest.fixture
def hosts(tmp_path):
    if reason := namespaces.missing() or ("" if shutil.which("openssl") else "a certificate needs openssl"):
        pytest.skip(reason)
    record_sets.make(tmp_path / "records", examples=EXAMPLES, validation=20)
    gcs_server.upload(tmp_path / "records", tmp_path / "store", "bucket", "records")
    with namespaces.Network(3) as network:
        yield Hosts(network, tmp_path)


def wait_until(condition, process, seconds=600):
    """Waits, as long as a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.01)


def finished(process, code=0):
    """What a process has printed."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == code, printed[-3000:]
    return printed


def expected_steps(records, epochs):
    """The batches of one host that is this process, int64 [slots, 3] for each step."""
    plan = input_coordinator.budget(records, epochs)
    batches = reader.dataset(records, plan, input_coordinator.view).as_numpy_iterator()
    return [np.stack([batch[name].astype(np.int64) for name in ("id", "epoch", "weight")], 1) for batch in batches]


def assert_batches(steps, expected, lanes):
    """That hosts took the batches of one host, each its own lanes."""
    for taken, batch in zip(steps, expected, strict=True):
        shares = np.split(batch.reshape(-1, lanes, 3), len(taken), axis=1)
        for share, own in zip(taken, shares, strict=True):
            np.testing.assert_array_equal(share, own.reshape(-1, 3))


def fetched(folder, address):
    """Record id to how often a host fetched the record, by the log of the store."""
    counts = collections.Counter()
    for request in gcs_server.requests(folder):
        match = re.fullmatch(r"/bucket/records/(.*-train\.tfrecord-\d+-of-\d+)", request["path"])
        if match and request["method"] == "GET" and request["client"] == address:
            path = str(folder / "records" / match[1])
            index = shard.read_index(path, os.path.getsize(f"{path}.index") // 8 - 1).tolist()
            start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", request["range"]).groups())
            if end + 1 - start == READAHEAD:
                continue  # TensorFlow asks for one byte before the place where it will read
            first, last = index.index(start), index.index(end + 1)
            payloads = shard.read_records(path, np.array(index), first, last - first)
            names = [f"{path} {number}" for number in range(first, last)]
            counts.update(
                int(i) for i in record.parse(payloads, names, record.SINGLE_LABEL)["id"].numpy().view(np.uint64)
            )
    return counts


def test_each_host_reads_its_own_lanes_and_no_others(hosts, tmp_path):
    _, addresses = hosts.start_servers(2)
    finished(hosts.start_coordinator(1, addresses))
    records = reader.RecordSet(str(tmp_path / "records"), "train")
    lanes = input_coordinator.budget(records, 1).order.lanes
    assert_batches(hosts.steps(), expected_steps(records, 1), lanes)
    read = [fetched(tmp_path, host.address) for host in hosts.hosts]
    for number, counts in enumerate(read):
        slots = np.concatenate([step[number] for step in hosts.steps()])
        assert counts == dict.fromkeys(slots[slots[:, 2] == 1, 0].astype(np.uint64).tolist(), 1)
    assert len(read[0]) + len(read[1]) == len(read[0] | read[1]) == EXAMPLES
    assert manifest.checksum(read[0] | read[1]) == records.split.id_checksum
    assert not fetched(tmp_path, hosts.machine.address)


def test_a_host_is_killed_and_the_run_goes_on_with_the_other(hosts, tmp_path):
    epochs = 3
    servers, addresses = hosts.start_servers(2)
    coordinator = hosts.start_coordinator(epochs, addresses)
    wait_until(lambda: len(hosts.steps()) >= 8, coordinator)
    servers[1].send_signal(signal.SIGKILL)
    printed = finished(coordinator, code=1)
    assert re.search("HostLostError: A host of the TPU slice is gone .*task:1.* last checkpoint", printed), printed[
        -3000:
    ]
    begun = len(hosts.steps())

    servers[0].kill()
    servers[0].wait()
    _, addresses = hosts.start_servers(1)
    assert f"starting at step {begun}" in finished(hosts.start_coordinator(epochs, addresses))
    records = reader.RecordSet(str(tmp_path / "records"), "train")
    steps, expected = hosts.steps(), expected_steps(records, epochs)
    assert 8 <= begun < len(steps) == len(expected)
    assert_batches(steps, expected, input_coordinator.budget(records, epochs).order.lanes)
    slots = np.concatenate([step.reshape(-1, 3) for step in steps])
    for epoch in range(epochs):
        ids = slots[(slots[:, 1] == epoch) & (slots[:, 2] == 1), 0]
        assert len(ids) == EXAMPLES and manifest.checksum(ids.tolist()) == records.split.id_checksum


def test_a_shard_that_one_host_lacks_is_named(hosts, tmp_path):
    lost = f"{tmp_path}/records/demo-train.tfrecord-00001-of-00003"
    shutil.copytree(tmp_path / "records", tmp_path / "fewer", ignore=shutil.ignore_patterns(os.path.basename(lost)))
    hosts.hosts[1].show(tmp_path / "fewer", tmp_path / "records")
    _, addresses = hosts.start_servers(2)
    printed = finished(hosts.start_coordinator(1, addresses, str(tmp_path / "records")), code=1)
    assert f"ManifestError: {lost} cannot be opened by the host that reads it" in printed


GIN = """
include 'gin/model/nano.gin'
include 'gin/run/pretrain.gin'
DATA_DIR = "gs://bucket/records"
GLOBAL_BATCH = 16
TRAIN_SIZE = 32
EVAL_SIZE = 32
EPOCHS = 1.5
PRECISION = "float32"
LEARNING_RATE = 0.2
Loop.steps_per_loop = 1
Loop.checkpoint_every = 4
"""


def test_a_run_of_two_hosts_loses_one_and_ends_with_the_other(hosts, tmp_path):
    """Nothing is shared but the bucket: neither a disk nor `localhost`."""
    (tmp_path / "small.gin").write_text(GIN)
    command = [sys.executable, "pipeline/main.py", f"--gin_file={tmp_path}/small.gin", "--model_dir=gs://bucket/run"]
    addresses = [f"{host.address}:{PORT}" for host in hosts.hosts]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = []
    for index, host in enumerate(hosts.hosts):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        workers.append(host.start(command, env={**hosts.environment, "TF_CONFIG": json.dumps(config)}, **output))
    metrics = gcs_server.object_path(tmp_path / "store", "bucket", "run/metrics.jsonl")
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 6, workers[0])
    workers[1].send_signal(signal.SIGKILL)
    assert "PeerLostError: Working together failed" in finished(workers[0], code=1)

    printed = finished(hosts.hosts[0].start(command, env=hosts.environment, **output))
    assert re.search(r"Continuing from step (4|8|12) of 20", printed), printed[-3000:]
    gcs_server.download(tmp_path / "store", "bucket", "run", tmp_path / "run")
    ledger = json.loads((tmp_path / "run" / "run.json").read_text())["ledger"]
    assert [(entry["examples"], entry["exactly_once"]) for entry in ledger] == [(203, True), (102, True)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
