"""Deployed copies beside their golden answers: a SavedModel, and a server of TensorFlow Serving's gRPC protos."""

import concurrent.futures
import contextlib
import re
import shutil
import subprocess
import sys

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from pipeline.serving import client, deployed, golden
from tests.serve_process import ROOT, running
from tests.served_model import brightness, encoded, export

PROGRAM = str(ROOT / "pipeline/check_serving.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Two versions, of which the second answers otherwise."""
    path = tmp_path_factory.mktemp("exports") / "tones"
    export(path)
    other = brightness()
    other.linear.bias.assign_add([0.5, 0, 0, 0])
    export(path, other)
    return path


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers `Predict` with a loaded SavedModel, as TensorFlow Serving does."""

    def __init__(self, name, saved_model, left_out=()):
        self._name, self._saved_model, self._left_out = name, saved_model, left_out

    def Predict(self, request, context):
        if request.model_spec.name != self._name:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({request.model_spec.name})"
            )
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        outputs = self._saved_model.signatures[request.model_spec.signature_name or "serving_default"](**inputs)
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for name, tensor in outputs.items():
            if name not in self._left_out:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor))
        return response


@contextlib.contextmanager
def grpc_server(folder, **options):
    """The address of a server of a version folder, which calls it `tones`."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    service = Service("tones", client.load(str(folder)), **options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_copy_is_what_its_metadata_says(base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base / "1", copy)
    images, expected = deployed.golden_images(str(copy))
    assert len(images) == 8
    assert not deployed.changed_files(str(copy))
    assert not golden.differences(expected, deployed.ask_saved_model(str(copy), images))
    (copy / "README.md").unlink()
    with open(copy / "assets/labels.txt", "a") as file:
        file.write("one more\n")
    missing, changed = sorted(deployed.changed_files(str(copy)))
    assert "README.md" in missing and "labels.txt" in changed and "SHA-256" in changed
    (copy / "variables/variables.index").write_bytes(b"damaged")
    with pytest.raises(deployed.DeploymentError, match="cannot be loaded"):
        deployed.ask_saved_model(str(copy), images)


def test_a_folder_without_golden_answers(tmp_path):
    with pytest.raises(deployed.DeploymentError, match="expected an export"):
        deployed.golden_images(str(tmp_path))


def test_golden_answers_by_grpc(base):
    images, expected = deployed.golden_images(str(base / "1"))
    with grpc_server(base / "1") as address:
        assert not golden.differences(expected, deployed.ask_grpc(address, "tones", images))
        with pytest.raises(deployed.DeploymentError, match=r"NOT_FOUND.*other"):
            deployed.ask_grpc(address, "other", images)
    with pytest.raises(deployed.DeploymentError, match="UNAVAILABLE"):
        deployed.ask_grpc(address, "tones", images)
    with (
        grpc_server(base / "1", left_out=("valid",)) as address,
        pytest.raises(deployed.DeploymentError, match="valid"),
    ):
        deployed.ask_grpc(address, "tones", images)


def test_the_grpc_client_of_the_guide_works_as_pasted(base, tmp_path, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(import grpc.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes(encoded(250))
    monkeypatch.chdir(tmp_path)
    with grpc_server(base / "1") as address:
        exec(program.replace("localhost:8500", address).replace('"birds"', '"tones"'), {})
    assert capsys.readouterr().out == "bright\n"


def test_another_version_differs(base):
    images, expected = deployed.golden_images(str(base / "1"))
    with grpc_server(base / "2") as address:
        lines = golden.differences(expected, deployed.ask_grpc(address, "tones", images))
    assert {line.split(":")[0] for line in lines} == {answer["image"] for answer in expected if answer["valid"]}


def check(*flags):
    return subprocess.run([sys.executable, PROGRAM, *flags], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["--saved_model", "--url", "--grpc"]),
        (["--url=http://x/v1/models/m"], ["--golden"]),
        (["--saved_model=a", "--golden=b"], ["--golden"]),
        (["--grpc=x:1", "--golden=b"], ["--name"]),
        (["--saved_model=none"], ["none", "does not exist"]),
    ],
)
def test_flags(flags, names):
    result = check(*flags)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert all(name in result.stdout + result.stderr for name in names)


@pytest.mark.slow
def test_the_program(base, tmp_path):
    result = check(f"--saved_model={base}")  # the newest version
    assert result.returncode == 0 and str(base / "2") in result.stdout
    with running(base / "1", tmp_path / "log") as server:
        url = f"--url=http://127.0.0.1:{server.port}/v1/models/tones"
        assert check(url, f"--golden={base / '1'}").returncode == 0
        result = check(url, f"--golden={base}")
        assert result.returncode == 1 and "photo.jpg: a probability differs" in result.stdout
    result = check(url, f"--golden={base}")
    assert result.returncode == 1 and "does not answer" in result.stderr and "Traceback" not in result.stderr
    with grpc_server(base / "1") as address:
        assert check(f"--grpc={address}", "--name=tones", f"--golden={base / '1'}").returncode == 0
