"""The server as its user starts it: one process, real HTTP."""

import concurrent.futures
import http.client
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from pipeline.serving import client, deployed, golden, warmup
from tests.serve_process import PROGRAM, ROOT, b64, running
from tests.served_model import CLASSES, encoded, export

MODEL = "/v1/models/tones"
PREDICT = f"{MODEL}:predict"
BODY, QUEUE, BATCH = 1_000_000, 8, 4
DARK, BRIGHT = encoded(10), encoded(250, "PNG")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "tones"
    export(path)
    return path


@pytest.fixture(scope="module")
def server(directory, tmp_path_factory):
    """One server for the module; its batches wait long enough to be seen waiting."""
    limits = [f"--max_body_mb={BODY / 1e6}", f"--max_queue={QUEUE}", f"--max_batch={BATCH}", "--batch_wait_ms=300"]
    with running(directory, tmp_path_factory.mktemp("server") / "log", *limits, "--poll_seconds=0.1") as server:
        yield server


def predictions(answer):
    code, content, _ = answer
    assert code == 200, content
    return content["predictions"]


def test_rows_and_columns_say_what_the_saved_model_does(server, directory):
    images = [DARK, b"no image", BRIGHT]
    rows = predictions(server.ask("POST", PREDICT, {"instances": [b64(image) for image in images]}))
    code, content, headers = server.ask("POST", PREDICT, {"inputs": {"image_bytes": [b64(image) for image in images]}})
    assert code == 200 and headers["content-type"] == "application/json"
    outputs = client.load(str(directory)).signatures["predict_bytes"](image_bytes=tf.constant(images))
    assert set(content["outputs"]) == set(rows[0]) == set(outputs)
    for name, expected in outputs.items():
        column = content["outputs"][name]
        assert column == [row[name] for row in rows]
        if expected.dtype == tf.string:
            assert column == [[text.decode() for text in row] for row in expected.numpy()]
        else:  # JSON holds all digits
            np.testing.assert_array_equal(np.array(column, expected.dtype.as_numpy_dtype), expected)
    assert rows[1]["valid"] is False and rows[2]["top_classes"][0] == "bright"


def test_signatures_have_names(server):
    pixels = np.full([2, 5, 7, 3], 250).tolist()
    rows = predictions(server.ask("POST", PREDICT, {"signature_name": "predict_images", "instances": pixels}))
    assert [row["top_classes"][0] for row in rows] == ["bright", "bright"]
    rows = predictions(
        server.ask("POST", PREDICT, {"signature_name": "features", "instances": [{"image_bytes": b64(DARK)}]})
    )
    assert set(rows[0]) == {"features", "valid"}


def test_status_and_metadata(server):
    code, status, _ = server.ask("GET", MODEL)
    (available,) = (v for v in status["model_version_status"] if v["state"] == "AVAILABLE")
    number = available["version"]
    assert code == 200 and available["status"] == {"error_code": "OK", "error_message": ""}
    assert server.ask("GET", f"{MODEL}/versions/{number}")[1] == {"model_version_status": [available]}
    code, metadata, _ = server.ask("GET", f"{MODEL}/versions/{number}/metadata")
    assert code == 200 and metadata["model_spec"] == {"name": "tones", "signature_name": "", "version": number}
    definition = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert definition["method_name"] == "tensorflow/serving/predict"
    image_bytes = definition["inputs"]["image_bytes"]
    assert image_bytes["dtype"] == "DT_STRING"
    assert image_bytes["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    code, _, headers = server.ask("POST", f"{MODEL}/versions/{number}:predict", {"instances": [b64(DARK)]})
    assert code == 200 and headers["model-version"] == number
    assert server.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "names"),
    [
        ("POST", "/v1/models/other:predict", {"inputs": []}, 404, ["Latest(other)", "'tones'"]),
        ("POST", f"{MODEL}/versions/77:predict", {"inputs": []}, 404, ["Specific(tones, 77)", "version"]),
        ("GET", "/v1/models/other", None, 404, ["other", "'tones'"]),
        ("GET", f"{MODEL}/versions/77", None, 404, ["77"]),
        ("GET", f"{MODEL}/versions/77/metadata", None, 404, ["77"]),
        ("GET", PREDICT, None, 400, ["Malformed request: GET"]),
        ("POST", MODEL, {}, 400, ["Malformed request: POST"]),
        ("POST", f"{MODEL}:classify", {}, 400, ["classify", ":predict"]),
        ("PUT", MODEL, {}, 405, []),
        ("GET", "/elsewhere", None, 404, []),
        ("POST", PREDICT, b"{", 400, ["JSON Parse error"]),
        ("POST", PREDICT, b"[" * 100_000, 400, ["nested"]),
        ("POST", PREDICT, {"instances": [b64(DARK)], "signature_name": "classes"}, 400, ["classes", "predict_images"]),
        ("POST", PREDICT, {"instances": [{"b64": "?"}]}, 400, ["decode", "?"]),
        ("POST", PREDICT, {"instances": [b64(DARK)] * (QUEUE + 1)}, 400, [str(QUEUE)]),
    ],
)
def test_what_cannot_be_answered_says_why(server, method, path, body, code, names):
    found, answer, _ = server.ask(method, path, body)
    assert found == code
    assert all(name in answer["error"] for name in names), answer


def test_a_body_may_not_be_too_large(server):
    for size in (BODY + 1, 7 * BODY):  # more than sockets hold, so the client is still sending
        code, answer, _ = server.ask("POST", PREDICT, b" " * size)
        assert code == 413 and f"{BODY:,}" in answer["error"]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", PREDICT, iter([b" " * BODY, b" "]))  # in chunks, whose sum no header says
    assert connection.getresponse().status == 413
    connection.close()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:  # as curl does with a large file
        raw.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY + 1}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 413")
    assert server.ask("POST", PREDICT, b" " * BODY)[0] == 400


def test_concurrent_requests_share_a_batch(server):
    name = 'serve_batch_size_bucket{le="2.0"}'
    small, batches = server.metric(name), server.metric("serve_batch_size_count")
    with concurrent.futures.ThreadPoolExecutor(BATCH) as pool:
        asked = [pool.submit(server.ask, "POST", PREDICT, {"instances": [b64(image)]}) for image in [DARK, BRIGHT] * 2]
        found = [predictions(each.result())[0]["top_classes"][0] for each in asked]
    assert found == ["dark", "bright"] * 2
    assert server.metric("serve_batch_size_count") == batches + 1 and server.metric(name) == small
    assert server.metric('serve_requests_total{code="200"}') >= BATCH
    assert server.metric("serve_request_seconds_count") >= BATCH


def test_a_request_may_be_larger_than_a_batch(server):
    levels = [10, 250, 10, 250, 250, 10, 10]
    rows = predictions(server.ask("POST", PREDICT, {"instances": [b64(encoded(level)) for level in levels]}))
    assert [row["top_classes"][0] for row in rows] == ["bright" if level > 99 else "dark" for level in levels]


def test_a_full_queue_refuses(server):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waits = pool.submit(server.ask, "POST", PREDICT, {"instances": [b64(DARK)] * (BATCH - 1)})
        while not server.metric("serve_queue_length"):
            assert not waits.done()
        code, answer, headers = server.ask("POST", PREDICT, {"instances": [b64(DARK)] * QUEUE})
        assert code == 503 and str(QUEUE) in answer["error"] and headers["retry-after"] == "1"
        assert len(predictions(waits.result())) == BATCH - 1


def test_answers_are_sent_at_once(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - start)
    connection.close()
    assert statistics.median(seconds) < 0.03  # 40 ms where TCP waits for an acknowledgement


def test_the_page_is_complete_in_itself(server):
    code, page, headers = server.ask("GET", "/")
    assert code == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert all(name in page for name in ["tones", *CLASSES])
    assert "http:" not in page and "https:" not in page


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("page", ["docs/serving.md", "the model card"])
def test_the_request_that_pages_show_works_as_pasted(server, directory, tmp_path, page):
    path = directory / "1/README.md" if page == "the model card" else ROOT / page
    (command,) = re.findall(r"```\n(\(printf .*?)```", path.read_text(), re.DOTALL)
    (tmp_path / re.search(r"base64 < (\S+)", command)[1]).write_bytes(BRIGHT)
    command = command.replace("localhost:8501", f"127.0.0.1:{server.port}").replace("/birds:", "/tones:")
    shown = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)["predictions"][0]["top_classes"][0] == "bright"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_node_program_prints_what_it_is_answered(server, tmp_path):
    for name, content in (("bright.png", BRIGHT), ("text.jpg", b"text")):
        (tmp_path / name).write_bytes(content)
    program, url = str(ROOT / "examples/classify.mjs"), f"http://127.0.0.1:{server.port}{MODEL}"
    command = ["node", program, url, "bright.png", "text.jpg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    bright, text = (line.split("\t") for line in done.stdout.splitlines())
    assert bright[:2] == ["bright.png", "bright"] and float(bright[2]) > 0.5 and text == ["text.jpg"]
    done = subprocess.run(["node", program, url + "x", "bright.png"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "'tones'" in done.stderr


def test_golden_answers_by_rest(server, directory):
    images, expected = deployed.golden_images(str(directory / "1"))
    url = f"http://127.0.0.1:{server.port}{MODEL}"
    assert not golden.differences(expected, deployed.ask_rest(url, images))
    with pytest.raises(deployed.DeploymentError, match=r"404.*tones"):
        deployed.ask_rest(url + "x", images)
    with pytest.raises(deployed.DeploymentError, match="does not answer"):
        deployed.ask_rest("http://127.0.0.1:1/v1/models/tones", images)


def test_a_new_version_takes_over_between_requests(server, directory):
    def version():
        code, _, headers = server.ask("POST", PREDICT, {"instances": [b64(DARK)]})
        assert code == 200
        return headers["model-version"]

    def states():
        statuses = server.ask("GET", MODEL)[1]["model_version_status"]
        return {status["version"]: (status["state"], status["status"]["error_code"]) for status in statuses}

    def wait_until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, server.log.read_text()

    shutil.copytree(directory / "1", directory / "partial")
    (directory / "partial/assets.extra" / warmup.FILE).unlink()  # which takes seconds
    (directory / "partial/variables/variables.index").write_bytes(b"damaged")
    (directory / "partial").rename(directory / "2")
    wait_until(lambda: states().get("2", ("LOADING", ""))[0] != "LOADING")
    assert states() == {"1": ("AVAILABLE", "OK"), "2": ("END", "INTERNAL")} and version() == "1"
    assert "Version 2" in server.log.read_text()
    shutil.copy(directory / "1/variables/variables.index", directory / "2/variables/variables.index")
    seen = []
    wait_until(lambda: seen.append(version()) or seen[-1] == "2")
    assert set(seen) == {"1", "2"} and states() == {"1": ("END", "OK"), "2": ("AVAILABLE", "OK")}
    assert server.ask("POST", f"{MODEL}/versions/1:predict", {"inputs": []})[0] == 404
    assert server.metric("serve_model_version") == 2


def start(*flags, **options):
    return subprocess.run([sys.executable, PROGRAM, *flags], capture_output=True, text=True, timeout=120, **options)


def test_a_port_in_use(server, directory):
    result = start(f"--saved_model={directory}", f"--port={server.port}")
    assert result.returncode == 1 and f"Port {server.port} is in use" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_folder_without_saved_model(tmp_path):
    result = start(f"--saved_model={tmp_path}", "--port=0")
    assert result.returncode == 1 and "--task=export" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_sigterm_lets_requests_finish(directory, tmp_path):
    with running(directory, tmp_path / "log", "--batch_wait_ms=2000", "--name=tones") as server:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(server.ask, "POST", PREDICT, {"instances": [b64(DARK)] * 2}) for _ in range(3)]
            while server.metric("serve_queue_length") < 6:
                assert not any(each.done() for each in asked)
            server.process.terminate()
            time.sleep(0.5)
            with pytest.raises(ConnectionRefusedError):
                server.ask("GET", "/healthz")
            assert all(len(predictions(each.result())) == 2 for each in asked)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_ctrl_c_ends_as_a_shell_expects(directory, tmp_path):
    with running(directory, tmp_path / "log") as server:
        server.process.send_signal(2)
        assert server.process.wait(60) == -2
        assert "Traceback" not in server.log.read_text()
