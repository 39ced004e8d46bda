"""SIGTERM and Ctrl-C end the program as a user sees it: saved, with a code, without a traceback."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from pipeline import report
from pipeline.train import checkpoint
from tests import record_sets, tiny_runs

ROOT = pathlib.Path(__file__).parent.parent


GIN = f"""{tiny_runs.GIN}
EPOCHS = 500
nfnet.implementation = "plain"  # without the compilation that a long run begins with
Loop.steps_per_loop = 2
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_within_seconds(tmp_path, number, code):
    record_sets.make(tmp_path / "records", examples=100, validation=20)
    config, model_dir = tmp_path / "endless.gin", tmp_path / "run"
    config.write_text(f'{GIN}DATA_DIR = "{tmp_path}/records"\n')
    command = [sys.executable, "pipeline/main.py", f"--gin_file={config}", f"--model_dir={model_dir}"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 180
        while not report.read_metrics(str(model_dir)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Preempted: stopped at step" in errors
    assert "Traceback" not in errors
    step = checkpoint.latest(str(model_dir / "checkpoints")).step
    assert step == report.read_metrics(str(model_dir))[-1]["step"]


# One call that holds the main thread in C for minutes, as a loop of training does: no handler runs meanwhile.
BUSY = """
import hashlib
from pipeline.train.preemption import Preemption
with Preemption(None, None):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_program_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert any("Ctrl-C again" in line for line in iter(process.stderr.readline, ""))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    finally:
        process.kill()
        process.communicate()
