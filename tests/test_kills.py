"""Two hundred kills at random moments of short runs, which then end in the bits of an undisturbed one."""

import collections
import contextlib
import json
import mmap
import multiprocessing
import os
import pathlib
import resource
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data import manifest
from pipeline.serving import version_folder
from pipeline.train import checkpoint
from pipeline.train.actions import Checkpoints
from pipeline.train.evaluator import Evaluator
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.train import train
from pipeline.train.trained_model import load_model
from pipeline.train.trainer import Trainer
from tests import record_sets, served_model, tiny_runs
from tests.run_results import assert_same

KILLS = 200
RUNS_AT_A_TIME = 3
LOOP = Loop(strategy="one_device", steps_per_loop=1, checkpoint_every=2, evaluate_every_epochs=1, keep=1)
PHASES = ("training", "saving", "evaluating", "exporting")
# Seconds after a phase's beginning within which the kill falls.
WINDOWS = {"training": 0.5, "saving": 0.05, "evaluating": 0.5, "exporting": 2.0}
LIFE = 4.0  # seconds; kills of no chosen phase fall anywhere in them


def marks(phases: mmap.mmap, phase: str, start, end=None):
    """Keeps a byte of `phases` at 1 from the call of `start` (owner, name) to the end of `end`'s."""
    place, (end_owner, end_name) = PHASES.index(phase), end or start

    def mark(owner, name, before, after):
        original = getattr(owner, name)

        def method(*args, **kwargs):
            phases[place] = before if before is not None else phases[place]
            try:
                return original(*args, **kwargs)
            finally:
                phases[place] = after if after is not None else phases[place]

        setattr(owner, name, method)

    mark(*start, 1, None if end else 0)
    if end:
        mark(end_owner, end_name, None, 0)


def live(records, model_dir, phases) -> None:
    """What a process does: train, export, end. It is killed somewhere on the way, again and again."""
    marks(phases, "training", (Trainer, "train"))
    marks(phases, "saving", (checkpoint.Writer, "save"), (checkpoint, "_commit"))
    marks(phases, "evaluating", (Evaluator, "evaluate"))
    marks(phases, "exporting", (version_folder, "write"))
    output = os.open(f"{model_dir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    what, context = tiny_runs.experiment(records), RunContext(str(model_dir))
    train(context, what, LOOP)
    if not (model_dir / "saved_model/1").exists():
        model = load_model(checkpoint.find(context.model_dir), what.create_model)
        classes = manifest.read(str(records)).classes
        served_model.export(model_dir / "saved_model", model, classes=classes, size=what.data.eval_size)


class Life:
    """A forked process that lives on `model_dir`, and the moment at which it is to die."""

    def __init__(self, records, model_dir, rng: np.random.Generator | None):
        self.model_dir, self.phases, self._rng = model_dir, mmap.mmap(-1, len(PHASES)), rng
        self._target = rng.choice([None, *PHASES]) if rng else None
        self._occurrence = int(rng.integers(1, 4)) if self._target in ("training", "saving") else 1
        self._was = False
        self._dies_at = time.monotonic() + rng.uniform(0, LIFE) if rng and self._target is None else float("inf")
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                live(records, model_dir, self.phases)
                code = 0
            os._exit(code)

    def look(self) -> str | None:
        """'done', 'killed', or None while it lives; kills it when its moment has come."""
        if self._target is not None and self._dies_at == float("inf"):
            now = bool(self.phases[PHASES.index(self._target)])
            self._occurrence -= now and not self._was
            self._was = now
            if self._occurrence <= 0:
                self._dies_at = time.monotonic() + self._rng.uniform(0, WINDOWS[self._target])
        if time.monotonic() >= self._dies_at:
            os.kill(self._pid, signal.SIGKILL)
            _, status = os.waitpid(self._pid, 0)
        else:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid == 0:
                return None
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)}; see {self.model_dir}.log"
            return "killed"
        assert os.WEXITSTATUS(status) == 0, f"exit {status}; see {self.model_dir}.log"
        return "done"


def campaign(records: pathlib.Path, folder: pathlib.Path, kills: int) -> None:
    """Runs an undisturbed life, then kills lives until `kills` of them died; writes where they were into a file.

    TensorFlow's runtime must not have started in this process: forks share none of it.
    """
    undisturbed = Life(records, folder / "undisturbed", None)
    while undisturbed.look() is None:
        time.sleep(0.1)
    rng = np.random.default_rng(0)
    counts, deaths, runs = collections.Counter(), collections.Counter(), RUNS_AT_A_TIME
    lives = [Life(records, folder / f"run{number}", rng) for number in range(runs)]
    while lives:
        time.sleep(0.001)
        for place, life in enumerate(lives):
            if (end := life.look()) is None:
                continue
            model_dir, enough = life.model_dir, counts.total() >= kills
            if end == "killed":
                phases = [phase for phase, on in zip(PHASES, life.phases[:], strict=True) if on]
                counts["+".join(phases) or "starting or between"] += 1
                deaths[model_dir.name] += 1
                (folder / "kills.json").write_text(json.dumps({"where": counts, "deaths": deaths}, indent=1))
            elif enough:
                model_dir = None
            else:
                model_dir, runs = folder / f"run{runs}", runs + 1
            # Twenty deaths are enough for one run: its last life is left in peace.
            spared = enough or (model_dir is not None and deaths[model_dir.name] >= 20)
            lives[place] = Life(records, model_dir, None if spared else rng) if model_dir else None
        lives = [life for life in lives if life]


def predictions(model_dir, images):
    return (
        tf.saved_model.load(str(model_dir / "saved_model/1"))
        .signatures["serving_default"](image_bytes=tf.constant(images))["probabilities"]
        .numpy()
    )


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(tmp_path):
    record_sets.make(tmp_path / "records", examples=100, validation=20)
    process = multiprocessing.get_context("spawn").Process(
        target=campaign, args=(tmp_path / "records", tmp_path, KILLS)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    kills = json.loads((tmp_path / "kills.json").read_text())
    print(json.dumps(kills))
    assert sum(kills["where"].values()) >= KILLS
    for phase in PHASES:
        assert sum(n for where, n in kills["where"].items() if phase in where.split("+")) >= KILLS // 20, kills
    rng = np.random.default_rng(1)
    images = [record_sets.jpeg(rng, mean=mean) for mean in (50, 150, 200)]
    expected = predictions(tmp_path / "undisturbed", images)
    for name in kills["deaths"]:
        assert_same(tmp_path / name, tmp_path / "undisturbed")
        np.testing.assert_array_equal(predictions(tmp_path / name, images), expected)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, monkeypatch):
    """No file may grow beyond 10 kB from step 6 on: the checkpoint of step 8 cannot be written."""
    record_sets.make(tmp_path / "records", examples=100, validation=20)
    what = tiny_runs.experiment(tmp_path / "records", max_steps=12)
    loop = Loop(strategy="one_device", steps_per_loop=2, checkpoint_every=4)
    train(RunContext(str(tmp_path / "undisturbed")), what, loop)
    original, (soft, hard) = Checkpoints.__call__, resource.getrlimit(resource.RLIMIT_FSIZE)
    loops = []

    def third_time(self, output):
        original(self, output)
        loops.append(output)
        if len(loops) == 3:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    monkeypatch.setattr(Checkpoints, "__call__", third_time)
    try:
        with pytest.raises(checkpoint.CheckpointError, match=r"step-00000008: .*File too large.* room .*same command"):
            train(RunContext(str(tmp_path / "full")), what, loop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert os.listdir(tmp_path / "full/checkpoints") == ["step-00000004"]
    train(RunContext(str(tmp_path / "full")), what, loop)
    assert_same(tmp_path / "full", tmp_path / "undisturbed")
