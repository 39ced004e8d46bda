"""Dataflow's client and images in object stores, against local servers: `make test-clouds` has what these need."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests import ingest_images

for package in ("boto3", "gcp_storage_emulator", "google.cloud.storage", "moto"):
    pytest.importorskip(package, reason=f"{package} is installed by `make test-clouds` alone")

import boto3  # noqa: E402
from google.auth.credentials import AnonymousCredentials  # noqa: E402
from google.cloud import storage  # noqa: E402

from tests import dataflow_server  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parent.parent
AWS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
SHARDS = 4
SPLIT = "--validation_fraction=0.2"
FAULTS = 0.05  # of all requests to S3


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Good images and a broken one."""
    root = pathlib.Path(ingest_images.folder_tree(tmp_path_factory.mktemp("clouds") / "tree", images=60, classes=3))
    ingest_images.write(root / "class_1" / "broken.jpg", b"words")
    return root


@pytest.fixture(scope="module")
def expected(tree, tmp_path_factory):
    """What the runner in this process writes, from this disk."""
    output = tmp_path_factory.mktemp("clouds") / "set"
    run(tree, output, SPLIT)
    return records(output)


def command(images, output, *flags):
    inputs = [f"--input={images}", f"--output_dir={output}", f"--shards={SHARDS}", "--duplicates=keep_first"]
    return [sys.executable, "beam/build_tfrecords.py", *inputs, *flags]


def run(images, output, *flags, code=0, **environment):
    """Builds in a process of its own; returns what it prints."""
    done = subprocess.run(
        command(images, output, *flags),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def records(output) -> dict[str, bytes]:
    """Name to content of a set's shards and their indexes."""
    content = {path.name: path.read_bytes() for path in pathlib.Path(output).glob("*.tfrecord-*[0-9x]")}
    assert len(content) == 2 * (SHARDS + 1) and "broken.jpg" in (pathlib.Path(output) / "rejected.jsonl").read_text()
    return content


def server(request, module, *arguments):
    """Starts a server of `tests/`; returns the addresses that it prints."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    request.addfinalizer(process.kill)
    return process.stdout.readline().split()


@pytest.fixture
def google(request, tmp_path, tree):
    """Flags and environment of a job on a stand-in for Dataflow, with the images in a bucket."""
    (tmp_path / "store").mkdir()
    store, service = server(request, "tests.dataflow_server", tmp_path)
    bucket = storage.Client("project-1", AnonymousCredentials(), client_options={"api_endpoint": store}).bucket(
        "bucket"
    )
    for path in tree.rglob("*.*"):
        bucket.blob(f"tree/{path.relative_to(tree)}").upload_from_filename(str(path))
    flags = ["--runner=DataflowRunner", "--project=project-1", "--region=europe-west4", "--no_auth"]
    flags += ["--temp_location=gs://bucket/temp", "--staging_location=gs://bucket/staging"]
    flags += ["--sdk_container_image=docker.pkg.dev/images/ingest:1", f"--dataflow_endpoint={service}"]
    return flags, {"STORAGE_EMULATOR_HOST": store, "GOOGLE_CLOUD_PROJECT": "project-1", "NO_GCE_CHECK": "true"}


def test_a_job_that_dataflows_client_submits_writes_the_same_bytes(google, expected, tmp_path):
    flags, environment = google
    run("gs://bucket/tree", tmp_path / "set", SPLIT, "--max_num_workers=7", *flags, **environment)
    assert records(tmp_path / "set") == expected
    job = json.loads((tmp_path / "job.json").read_text())
    (pool,) = job["environment"]["workerPools"]
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 7
    assert pool["sdkHarnessContainerImages"][0]["containerImage"] == "docker.pkg.dev/images/ingest:1"
    assert (tmp_path / "installed" / "beam" / "ingest.py").exists(), "the workers' code is what was staged"
    assert len((tmp_path / "workers").read_text().splitlines()) == dataflow_server.WORKERS


def test_what_fails_in_a_job_of_dataflow_is_said(google, tmp_path):
    flags, environment = google
    printed = run("gs://bucket/tree", tmp_path / "set", "--validation_examples=99", *flags, code=1, **environment)
    assert "build_tfrecords.py: --validation_examples=99: the source lists only 61" in printed
    assert "Traceback" not in printed.split("build_tfrecords.py: ")[1]
    assert not (tmp_path / "set" / "manifest.json").exists()


@pytest.fixture
def s3(request, tmp_path, tree):
    """The address of a server of S3's protocol, where some requests fail, with the images in a bucket."""
    (address,) = server(request, "tests.s3_server", tmp_path / "requests", FAULTS)
    client = boto3.client("s3", endpoint_url=address, aws_access_key_id="key", aws_secret_access_key="secret")
    client.create_bucket(Bucket="images")
    for path in tree.rglob("*.*"):
        client.upload_file(str(path), "images", f"tree/{path.relative_to(tree)}")
    return address


def test_images_in_s3_give_the_same_bytes_whatever_fails(s3, expected, tmp_path):
    before = len((tmp_path / "requests").read_text().splitlines())
    run("s3://images/tree", tmp_path / "set", SPLIT, f"--s3_endpoint_url={s3}", **AWS)
    assert records(tmp_path / "set") == expected
    statuses = [line.split()[2] for line in (tmp_path / "requests").read_text().splitlines()[before:]]
    assert len(statuses) > 60 and "503" in statuses


def test_a_killed_build_from_s3_ends_in_the_same_bytes(s3, expected, tmp_path):
    words = command("s3://images/tree", tmp_path / "set", SPLIT, f"--s3_endpoint_url={s3}")
    chance = random.Random(0)
    for _ in range(2):
        enough = len((tmp_path / "requests").read_text().splitlines()) + chance.randint(20, 80)
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **AWS})
        while len((tmp_path / "requests").read_text().splitlines()) < enough:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run("s3://images/tree", tmp_path / "set", SPLIT, f"--s3_endpoint_url={s3}", **AWS)
    assert records(tmp_path / "set") == expected
