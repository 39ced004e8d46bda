"""Several replicas and several processes train what one device trains."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline import report
from pipeline.sharding import sharded_variable
from pipeline.train import checkpoint, distribution
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.train import train
from tests import record_sets, run_results, tiny_runs

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=100, validation=20)
    return path


def assert_same_metrics(model_dir, other):
    """To float tolerance: sums over replicas are taken in another order."""
    lines, expected = run_results.metrics(model_dir), run_results.metrics(other)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        assert line.keys() == wanted.keys()
        np.testing.assert_allclose(list(line.values()), list(wanted.values()), rtol=2e-4, atol=1e-5)


def assert_exactly_once(model_dir, examples):
    ledger = json.loads((model_dir / "run.json").read_text())["ledger"]
    assert [(e["examples"], e["exactly_once"]) for e in ledger] == [(n, True) for n in examples]


def train_replicas(model_dir, records, replicas):
    """Without dropout, whose noise is each replica's own; the images' noise is the records' own."""
    if replicas > 1:
        sharded_variable.MIN_VALUES = 64  # each replica keeps and updates a part of each kernel
    experiment = tiny_runs.experiment(records, model=tiny_runs.without_noise, epochs=1.5)
    strategy = {"strategy": "mirrored", "cpu_replicas": replicas} if replicas > 1 else {"strategy": "one_device"}
    train(RunContext(str(model_dir)), experiment, Loop(steps_per_loop=2, checkpoint_every=4, **strategy))


@pytest.fixture(scope="module")
def one_device(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("one_device")
    train_replicas(path, records, 1)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_train_what_one_device_trains(records, one_device, tmp_path, replicas):
    # In a process of its own: TensorFlow takes one number of replicas for good.
    several = multiprocessing.get_context("spawn").Process(
        target=train_replicas, args=(tmp_path / "several", records, replicas)
    )
    several.start()
    several.join()
    assert several.exitcode == 0
    assert_same_metrics(tmp_path / "several", one_device)
    assert_exactly_once(tmp_path / "several", [100, 50])


@pytest.mark.slow
def test_replicas_resume_in_the_same_bits(records, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded_variable, "MIN_VALUES", 64)
    experiment = tiny_runs.experiment(records, epochs=1)
    loop = Loop(strategy="mirrored", cpu_replicas=2, steps_per_loop=2, checkpoint_every=2)
    whole = train(RunContext(str(tmp_path / "whole")), experiment, loop)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (6, 7):
        shutil.rmtree(tmp_path / f"cut/checkpoints/step-{step:08}")
    (tmp_path / "cut/run.json").unlink()
    resumed = train(RunContext(str(tmp_path / "cut")), experiment, loop)
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert_exactly_once(tmp_path / "cut", [100])


def test_a_batch_that_the_replicas_do_not_divide_is_refused(records, tmp_path):
    experiment = tiny_runs.experiment(records, model=tiny_runs.without_noise)
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch=18))
    with pytest.raises(ValueError, match="batch of 18 images cannot be divided over 4 replicas: use a multiple of 4"):
        train(RunContext(str(tmp_path)), experiment, Loop(strategy="mirrored", cpu_replicas=4))


@pytest.mark.parametrize(
    ("config", "process"),
    [
        ({}, 0),
        ({"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}}, 0),
        ({"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 1}}, 1),
        ({"cluster": {"chief": ["c"], "worker": ["a", "b"]}, "task": {"type": "chief", "index": 0}}, 0),
        ({"cluster": {"chief": ["c"], "worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}}, 1),
    ],
)
def test_one_process_is_the_chief(monkeypatch, config, process):
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert distribution.process() == process
    assert distribution.is_chief() == (process == 0)


GIN = f"""{tiny_runs.GIN}
Loop.steps_per_loop = 1
Data.on_damage = "mask"
"""


@pytest.fixture(scope="module")
def gin_file(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("gin") / "small.gin"
    path.write_text(f'{GIN}DATA_DIR = "{records}"\n')
    return path


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(gin_file, model_dir, workers, *params):
    """Starts the processes of a cluster (one without TF_CONFIG for `workers` 0); each writes its stderr to a file."""
    addresses = [f"localhost:{port}" for port in free_ports(workers)]
    processes = []
    for index in range(max(workers, 1)):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} if workers else {}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "pipeline/main.py", f"--gin_file={gin_file}", f"--model_dir={model_dir}"]
        command += [f"--gin_param={param}" for param in params]
        with open(f"{model_dir}-{index}.log", "a") as log:
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return processes


def wait(processes, timeout=400):
    deadline = time.monotonic() + timeout
    try:
        return [process.wait(max(deadline - time.monotonic(), 1)) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for_step(processes, model_dir, step, timeout=400):
    deadline = time.monotonic() + timeout
    while not any(line["step"] >= step for line in report.read_metrics(str(model_dir))):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(gin_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "run"
    assert wait(start(gin_file, path, 0)) == [0]
    return path


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_train_what_one_process_trains(gin_file, alone, tmp_path, workers):
    assert wait(start(gin_file, tmp_path / "run", workers)) == [0] * workers
    assert_same_metrics(tmp_path / "run", alone)
    assert_exactly_once(tmp_path / "run", [100, 100, 50])


@pytest.mark.slow
def test_workers_evaluate_what_one_process_evaluates(gin_file, alone, tmp_path):
    folders = {workers: tmp_path / f"run{workers}" for workers in (0, 2)}
    for workers, model_dir in folders.items():
        shutil.copytree(alone, model_dir)
        assert wait(start(gin_file, model_dir, workers, "RUN=@evaluate", 'evaluate.split="train"')) == [0] * max(
            workers, 1
        )
    one, two = (model_dir / "evaluation" / "train" for model_dir in folders.values())
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for name in ("classes.csv", "confusion.csv"):
        assert (one / name).read_text() == (two / name).read_text()
    lines = [report.read_metrics(str(model_dir))[-1] for model_dir in folders.values()]
    words, others = ({name: value for name, value in line.items() if isinstance(value, str)} for line in lines)
    assert words == others, "which checkpoint was evaluated"
    numbers, others = ({name: value for name, value in line.items() if name not in words} for line in lines)
    assert numbers == pytest.approx(others, rel=1e-4) and "train_macro_f1" in numbers


@pytest.mark.slow
def test_a_killed_worker_and_a_restart_leave_the_ledger_exact(gin_file, alone, tmp_path):
    model_dir = tmp_path / "run"
    processes = start(gin_file, model_dir, 2)
    wait_for_step(processes, model_dir, 10)
    processes[1].send_signal(signal.SIGKILL)
    assert wait(processes)[0] == 1  # the other notices, says so and ends
    assert "PeerLostError: Working together failed" in pathlib.Path(f"{model_dir}-0.log").read_text()
    assert not (model_dir / "run.json").exists()
    assert wait(start(gin_file, model_dir, 2)) == [0, 0]
    assert "Continuing from step 8 of 18" in pathlib.Path(f"{model_dir}-0.log").read_text()
    assert_same_metrics(model_dir, alone)
    assert_exactly_once(model_dir, [100, 100, 50])


REPLICAS = ("Loop.strategy='mirrored'", "Loop.cpu_replicas=4")


@pytest.mark.slow
def test_killed_replicas_continue_in_the_same_bits_and_on_other_numbers(gin_file, alone, tmp_path):
    """With the largest kernels, their momenta and averages shared out over four replicas."""
    whole, parts, elastic = (tmp_path / name for name in ("whole", "parts", "elastic"))
    assert wait(start(gin_file, whole, 0, *REPLICAS)) == [0]
    processes = start(gin_file, parts, 0, *REPLICAS)
    wait_for_step(processes, parts, 6)
    processes[0].send_signal(signal.SIGKILL)
    assert wait(processes) == [-signal.SIGKILL]
    shutil.copytree(parts, elastic)
    assert wait(start(gin_file, parts, 0, *REPLICAS)) == [0]
    run_results.assert_same(parts, whole)
    processes = start(gin_file, elastic, 0, REPLICAS[0], "Loop.cpu_replicas=2")
    wait_for_step(processes, elastic, 10)
    processes[0].send_signal(signal.SIGTERM)
    assert wait(processes) == [143]
    assert wait(start(gin_file, elastic, 0, "Experiment.shard_optimizer=False")) == [0]
    for model_dir in (whole, elastic):
        assert_same_metrics(model_dir, alone)
        assert_exactly_once(model_dir, [100, 100, 50])


@pytest.mark.slow
def test_the_quickstarts_pre_training_is_that_of_whole_variables(records, tmp_path):
    settings = (f"DATA_DIR='{records}'", "GLOBAL_BATCH=32", "Experiment.max_steps=20", "Loop.cpu_replicas=2")
    results = []
    for shard in (True, False):
        model_dir = tmp_path / f"{shard}"
        params = (REPLICAS[0], *settings, f"Experiment.shard_optimizer={shard}")
        assert wait(start("gin/quickstart_pretrain.gin", model_dir, 0, *params)) == [0]
        results.append(run_results.result(model_dir)[:2])
    (step, found), (_, expected) = results
    assert step == 20
    for group, limit in (("model/", 1e-6), ("optimizer/m/", 1e-5)):
        of_group, wanted = (
            np.concatenate([values[name].ravel() for name in expected if name.startswith(group)]).astype(np.float64)
            for values in (found, expected)
        )
        assert np.linalg.norm(of_group - wanted) < limit * np.linalg.norm(wanted), group


@pytest.mark.slow
def test_sigterm_to_one_worker_stops_all_after_the_same_step(gin_file, alone, tmp_path):
    """And the run goes on with another number of workers, in the same batches."""
    model_dir = tmp_path / "run"
    processes = start(gin_file, model_dir, 2)
    wait_for_step(processes, model_dir, 5)
    processes[1].send_signal(signal.SIGTERM)
    assert wait(processes) == [143, 143]
    saved = checkpoint.latest(str(model_dir / "checkpoints"))
    assert saved.step == report.read_metrics(str(model_dir))[-1]["step"] >= 5
    assert wait(start(gin_file, model_dir, 0)) == [0]
    assert_same_metrics(model_dir, alone)
    assert_exactly_once(model_dir, [100, 100, 50])
