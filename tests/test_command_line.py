"""How the programs start and end."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
from absl import flags
from pipeline import command_line
flags.DEFINE_integer("number", 0, "A number.")
def main(argv):
    {body}
command_line.run(main)
"""


def run(*command, **options):
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    "program",
    [
        *(f"pipeline/{name}.py" for name in ("main", "predict", "import_weights", "tpu_check")),
        *(f"beam/{name}.py" for name in ("build_tfrecords", "batch_predict")),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_one_screen_and_no_error(program, flag):
    done = run(program, flag)
    assert done.returncode == 0, done.stderr
    assert "--helpfull" in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 120
    assert done.stderr == ""


def test_flags_of_jobs_are_read_before_tensorflow_is_imported():
    """Its import takes seconds."""
    code = "import sys, beam.options, beam.prediction.options; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_full_help_of_a_job_has_the_flags_of_beam():
    done = run("beam/build_tfrecords.py", "--helpfull")
    assert done.returncode == 0
    assert "--direct_num_workers" in done.stdout and "--validation_fraction" in done.stdout


def test_the_full_help_has_the_flags_of_libraries():
    done = run("pipeline/main.py", "--helpfull")
    assert done.returncode == 0
    assert "absl.logging" in done.stdout and "--gin_file" in done.stdout


def test_a_wrong_flag_is_an_error():
    done = run("pipeline/main.py", "--gin_fil=x")
    assert done.returncode == 1
    assert "gin_file" in done.stderr


@pytest.mark.parametrize("flags", [["--split=test"], ["--task=train", "--split=test"]])
def test_a_split_without_evaluation_is_refused(flags):
    done = run("pipeline/main.py", "--model_dir=runs/mine", *flags)
    assert done.returncode == 1
    assert "--task=evaluate" in done.stderr


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return 3", 3, ""),
        ("import os; os.kill(os.getpid(), 2)", -signal.SIGINT, ""),  # 130 in a shell
        ("raise BrokenPipeError", 1, ""),
    ],
)
def test_exit_codes(body, code, message):
    done = run("-c", PROGRAM.format(body=body))
    assert (done.returncode, done.stderr) == (code, message)


def test_tensorflow_is_silent_where_there_is_no_gpu_and_has_onednn():
    """Where there is a GPU, it may report it."""
    unset = ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    body = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')), float(tf.constant(1.0)), "
    body += "__import__('os').environ['TF_ENABLE_ONEDNN_OPTS'])"
    done = run("-c", PROGRAM.format(body=body), env=environment)
    assert done.stdout[0] != "0" or done.stderr == ""
    assert done.stdout.split()[-1] == "1"
