"""The whole path of examples/public_accuracy.py, on files made here: fetched from a local server or a stand-in for the
hub, imported, evaluated on a small data set as TFDS writes it, compared."""

import base64
import functools
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from examples import public_accuracy
from pipeline.data import augment
from pipeline.model import nfnet, public_files, weights
from tests import record_sets
from tests.ingest_builds import build

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE, CLASSES, EXAMPLES, HITS = 32, 1000, 12, 9
SMALL = ['--gin_param=nfnet.variant="nano"', f"--gin_param=EVAL_SIZE={SIZE}", '--gin_param=Loop.strategy="one_device"']


@functools.cache
def images() -> tuple[bytes, ...]:
    """Encoded images of several shapes and brightnesses."""
    rng = np.random.default_rng(0)
    return tuple(record_sets.jpeg(rng, 60 + 8 * i, 48, mean=20 * i) for i in range(EXAMPLES))


def views(size: int = SIZE) -> tf.Tensor:
    """What evaluation feeds a model of."""
    shown = [augment.evaluation_view(tf.constant(image), size, "resize_crop") for image in images()]
    return augment.normalize(tf.stack(shown))


@functools.cache
def model():
    """A nano whose answers differ between the images: its bias takes away what they have in common."""
    made = nfnet.create("nano", CLASSES, implementation="plain")
    made.linear.kernel.assign(tf.random.stateless_normal(made.linear.kernel.shape, [1, 2]))
    made.linear.bias.assign(-tf.reduce_mean(made(views()), 0))
    return made


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A TFDS data set of whose labels the model gets 9 of 12 right."""
    folder = tmp_path_factory.mktemp("imagenet")
    best = model()(views()).numpy().argmax(1)
    assert len(set(best.tolist())) > 3
    with tf.io.TFRecordWriter(str(folder / "imagenet2012-validation.tfrecord-00000-of-00001")) as writer:
        for i, image in enumerate(images()):
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[(best[i] + (i >= HITS)) % CLASSES])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    names = [f"n{i:08d}" for i in range(CLASSES)]
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(folder), dataset_name="imagenet2012", split="validation", filetype_suffix="tfrecord"
    )
    split = tfds.core.SplitInfo(name="validation", shard_lengths=[EXAMPLES], num_bytes=0, filename_template=template)
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
    tfds.folder_dataset.write_metadata(data_dir=str(folder), features=features, split_infos=[split], check_data=False)
    return f"tfds:{folder}/validation"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each source's file of the model's weights."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}
    for source in ("deepmind", "timm"):
        paths[source] = folder / source
        public_files.write(str(paths[source]), weights.extract(model(), source), source)
    return paths


@pytest.fixture(scope="module")
def records(imagenet, tmp_path_factory):
    """The data set as records, as the first comparison leaves them in its folder."""
    folder = tmp_path_factory.mktemp("work") / "records"
    build(imagenet, folder, "--name=imagenet")
    return folder


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `content` as the authors' bucket does, with its MD5 in a header, and as the hub serves a repository."""

    content, md5, requests = b"", "", []

    def do_GET(self, body=True):
        self.requests.append(self.path)
        if "/resolve/" not in self.path and not self.path.endswith("nano_haiku.npz"):
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={self.md5}")
        self.send_header("ETag", hashlib.sha256(self.content).hexdigest())
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(self.content)

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """The address of a server of `Handler.content`."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.requests = []
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def serve(content: bytes) -> None:
    Handler.content, Handler.md5 = content, base64.b64encode(hashlib.md5(content).digest()).decode()


@pytest.fixture
def published(monkeypatch, files):
    """Makes nano a published variant, with `top1` percent; its recipe is F0's."""

    def publish(top1: float, md5: str | None = None) -> None:
        content = files["deepmind"].read_bytes()
        entry = public_accuracy.Published(top1, top1, md5 or hashlib.md5(content).hexdigest())
        monkeypatch.setitem(public_accuracy.PUBLISHED, "nano", entry)

    monkeypatch.setattr(public_accuracy, "gin_file", lambda variant: "gin/f0_imagenet_scratch.gin")
    publish(100 * HITS / EXAMPLES)
    return publish


def run(source, imagenet, work, *flags):
    return public_accuracy.main(
        [f"--source={source}", "--variant=nano", f"--imagenet={imagenet}", f"--work_dir={work}", *SMALL, *flags]
    )


def test_deepminds_weights_from_their_address_to_the_comparison(published, imagenet, files, server, tmp_path, capsys):
    serve(files["deepmind"].read_bytes())
    address = f"--address={server}/{{variant}}_haiku.npz"
    assert run("deepmind", imagenet, tmp_path, address) == 0
    assert "top-1 75.00% of 12 images, published 75.0%: within 0.1 points" in capsys.readouterr().out
    result = json.loads((tmp_path / "deepmind-nano.json").read_text())
    assert (result["top1"], result["examples"]) == (75.0, 12)
    assert result["sha256"] == hashlib.sha256(Handler.content).hexdigest()
    assert json.loads((tmp_path / "checksums.json").read_text())["deepmind-nano"]["sha256"] == result["sha256"]
    # Again, with what is here already, and with another number published.
    published(75.2)
    assert run("deepmind", imagenet, tmp_path, address) == 1
    assert "NOT within 0.1 points" in capsys.readouterr().out
    assert Handler.requests == ["/nano_haiku.npz"]


def test_timms_weights_from_the_hub_to_the_comparison(
    published, imagenet, records, files, tmp_path, capsys, monkeypatch
):
    shutil.copytree(records, tmp_path / "records")
    asked = []

    def download(*arguments, **settings):
        asked.append((arguments, settings))
        return str(files["timm"])

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    assert run("timm", imagenet, tmp_path, "--revision=abc") == 0
    assert asked == [(("timm/dm_nfnet_nano.dm_in1k", "model.safetensors"), {"revision": "abc"})]
    assert "nano of timm: top-1 75.00%" in capsys.readouterr().out


def test_the_hubs_own_client_fetches_from_a_server(files, server, tmp_path):
    """Where the extra is installed."""
    pytest.importorskip("huggingface_hub")
    serve(files["timm"].read_bytes())
    program = "from examples import public_accuracy as p; print(p._fetch_timm('nano', 'main'))"
    settings = {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert pathlib.Path(done.stdout.splitlines()[-1]).read_bytes() == Handler.content
    assert "/timm/dm_nfnet_nano.dm_in1k/resolve/main/model.safetensors" in Handler.requests


@pytest.mark.parametrize("damage", ["in transit", "at the source", pytest.param("since", marks=pytest.mark.slow)])
def test_another_file_than_was_published_is_refused(
    published, imagenet, records, files, server, tmp_path, capsys, damage
):
    shutil.copytree(records, tmp_path / "records")
    content = files["deepmind"].read_bytes()
    serve(content)
    flags = ("deepmind", imagenet, tmp_path, f"--address={server}/{{variant}}_haiku.npz")
    if damage == "since":
        assert run(*flags) == 0
        (tmp_path / "nano_haiku.npz").write_bytes(content + b"\0")
        message = "it is another file than was published or fetched before"
    elif damage == "in transit":
        Handler.content = content[:-1]  # its header has the MD5 of all
        message = "did not arrive whole"
    else:
        serve(content + b"\0")
        message = f"expected {hashlib.md5(content).hexdigest()}"
    assert run(*flags) == 1
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    if damage == "at the source":  # who trusts it says so
        sha256 = hashlib.sha256(Handler.content).hexdigest()
        assert f"--sha256={sha256}" in shown
        assert run(*flags, f"--sha256={sha256}") == 0


def test_records_of_other_images_are_not_taken(published, records, files, tmp_path, capsys):
    shutil.copytree(records, tmp_path / "records")
    assert run("timm", "tfds:imagenet_v2/test", tmp_path, f"--file={files['timm']}") == 1
    assert "not of tfds:imagenet_v2/test: remove it, or give another --work_dir" in capsys.readouterr().err


def test_what_is_missing_is_said(published, imagenet, files, server, tmp_path, capsys, monkeypatch):
    assert run("deepmind", imagenet, tmp_path, f"--address={server}/none/{{variant}}") == 1
    assert "HTTP Error 404" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run("timm", imagenet, tmp_path) == 1
    shown = capsys.readouterr().err
    assert "pip install -r examples/requirements.txt" in shown and "--file" in shown
    assert run("timm", f"tfds:{tmp_path}/validation", tmp_path, f"--file={files['timm']}") == 1
    assert "image-net.org" in capsys.readouterr().err


@pytest.mark.slow
def test_f0_by_its_own_recipe(imagenet, records, tmp_path, monkeypatch):
    """The size, the resolution and the command of a public variant, with random weights."""
    shutil.copytree(records, tmp_path / "records")
    made, path = nfnet.create("F0", CLASSES, implementation="plain"), tmp_path / "weights"
    made.linear.kernel.assign(tf.random.stateless_normal(made.linear.kernel.shape, [1, 2]))
    made.linear.bias.assign(-tf.reduce_mean(made(views(256)), 0))
    public_files.write(str(path), weights.extract(made, "timm"), "timm")
    labels = [int(model()(one[None])[0].numpy().argmax()) for one in views()]
    truth = [(label + (i >= HITS)) % CLASSES for i, label in enumerate(labels)]
    expected = 100 * np.mean(made(views(256)).numpy().argmax(1) == truth)
    public_accuracy.main(
        ["--source=timm", "--variant=F0", f"--imagenet={imagenet}", f"--file={path}", f"--work_dir={tmp_path}"]
    )
    result = json.loads((tmp_path / "timm-F0.json").read_text())
    assert result["top1"] == pytest.approx(expected) and result["published_top1"] == 83.6


def test_every_public_variant_has_its_recipe():
    assert list(public_accuracy.PUBLISHED) == [f"F{i}" for i in range(7)]
    for variant in public_accuracy.PUBLISHED:
        assert (ROOT / public_accuracy.gin_file(variant)).exists()
    assert "dm-nfnets/F6_haiku.npz" in public_accuracy.ADDRESS.format(variant="F6")
