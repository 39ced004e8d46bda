"""Records, run folder and checkpoints in an object store, through TensorFlow's own client for `gs://`.

The store is local (`gcs_server.py`): TensorFlow has no setting for another endpoint, so it is found under Google's
names by a hosts file of its own in a mount namespace.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import gcs_server, namespaces, record_sets, tiny_runs
from tests.run_results import assert_same

pytestmark = pytest.mark.slow
FAULTS = 0.03  # of all requests
GIN = f"""{tiny_runs.GIN}
Data.block = 4
Data.window = 8
Loop.steps_per_loop = 2
"""


class Bucket:
    """A host with a bucket `bucket` at `gs://bucket`, whose objects are files here."""

    def __init__(self, network, folder):
        self.folder = folder
        self.environment = gcs_server.serve(network, folder, FAULTS)
        self._host = network.hosts[1]

    def start(self, *command):
        """Starts a program of the project."""
        settings = {"env": self.environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return self._host.start([sys.executable, *command], **settings)

    def run(self, *command, code=0):
        """What a program of the project prints."""
        process = self.start(*command)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == code, printed[-3000:]
        return printed

    def path(self, name):
        """Where an object is stored."""
        return gcs_server.object_path(self.folder / "store", "bucket", name)

    def kill(self, process, name, size=1):
        """Kills a process as soon as an object exists and has `size` lines."""
        deadline = time.monotonic() + 600
        while not (self.path(name).exists() and self.path(name).read_bytes().count(b"\n") >= size):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()[-3000:]
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    if reason := namespaces.missing() or ("" if shutil.which("openssl") else "a certificate needs openssl"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("bucket")
    record_sets.make(folder / "records", examples=100, validation=20)
    (folder / "small.gin").write_text(GIN)
    gcs_server.upload(folder / "records", folder / "store", "bucket", "records")
    with namespaces.Network(2) as network:
        yield Bucket(network, folder)


def training(bucket, records, model_dir):
    """The command that trains."""
    return (
        "pipeline/main.py",
        f"--gin_file={bucket.folder}/small.gin",
        f'--gin_param=DATA_DIR = "{records}"',
        f"--model_dir={model_dir}",
    )


@pytest.fixture(scope="module")
def runs(bucket):
    """A run on this machine's disk, and one in the bucket that was killed twice, as files; what its last life said."""
    local, copy = bucket.folder / "local", bucket.folder / "copy"
    bucket.run(*training(bucket, bucket.folder / "records", local))
    command = training(bucket, "gs://bucket/records", "gs://bucket/run")
    bucket.kill(bucket.start(*command), "run/metrics.jsonl", 3)
    bucket.kill(bucket.start(*command), "run/checkpoints/step-00000012/variables.index", 0)
    printed = bucket.run(*command)
    gcs_server.download(bucket.folder / "store", "bucket", "run", copy)
    return local, copy, printed


def test_a_killed_run_in_a_bucket_ends_as_a_run_on_disk(bucket, runs):
    """Though some requests are refused and some answers and uploads are cut off."""
    local, copy, printed = runs
    assert "Continuing from step" in printed
    assert_same(copy, local, ignore=("bindings", "config_digest"))  # which name the folder of the records
    ledger = json.loads((copy / "run.json").read_text())["ledger"]
    assert [(entry["examples"], entry["exactly_once"]) for entry in ledger] == [(100, True), (100, True), (50, True)]
    assert {request["fault"] for request in gcs_server.requests(bucket.folder)} == {"", "refused", "cut"}


def test_what_a_run_leaves_in_a_bucket_is_no_more_than_on_disk(runs):
    local, copy, _ = runs
    names = [sorted(str(path.relative_to(each)) for path in each.rglob("*")) for each in (copy, local)]
    names = [[name for name in each if not name.startswith("tensorboard/")] for each in names]
    assert names[0] == names[1]


def test_tensorboard_costs_one_upload_a_loop(bucket, runs):
    """A flush uploads the whole file."""
    uploads = [
        request
        for request in gcs_server.requests(bucket.folder)
        if request["method"] == "POST" and "name=run/tensorboard/events" in request["path"]
    ]
    loops_and_evaluations = 2 * (9 + 3)  # at most, in three lives
    assert 10 <= len(uploads) <= 2 * loops_and_evaluations


def test_evaluation_export_and_prediction_in_a_bucket(bucket, runs):
    local, _, _ = runs
    assert "step 18 of gs://bucket/run" in bucket.run(
        "pipeline/main.py", "--model_dir=gs://bucket/run", "--task=evaluate"
    )
    export = ("pipeline/main.py", "--model_dir=gs://bucket/run", "--task=export")
    bucket.kill(bucket.start(*export), "run/saved_model/1/", 0)  # while its files are moved there, one by one
    assert "gs://bucket/run/saved_model/2" in bucket.run(*export)
    bucket.run("pipeline/main.py", f"--model_dir={local}", "--task=export")
    image = bucket.folder / "image.jpg"
    image.write_bytes(record_sets.jpeg(np.random.default_rng(0)))
    answers = [
        bucket.run("pipeline/predict.py", f"--model_dir={model_dir}", str(image)).splitlines()[-1]
        for model_dir in ("gs://bucket/run", local)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("gs://bucket/nothing", "No record set at 'gs://bucket/nothing': it does not exist"),
        ("gs://nowhere/records", "No record set at 'gs://nowhere/records': it does not exist"),
        (f"gs://{gcs_server.PRIVATE}/records", "gs://private/records/manifest.json cannot be read .*PermissionDenied"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_named(bucket, directory, message):
    printed = bucket.run(*training(bucket, directory, "gs://bucket/none"), code=1)
    assert re.search(message, printed), printed
    assert "Traceback" not in printed
