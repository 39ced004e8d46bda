"""Runs a study on this machine, as processes of `pipeline/main.py`, one or several at a time; skips what is done."""

import contextlib
import fcntl
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy import optimize

from pipeline.model import cost
from pipeline.study import StudyError, recipe, run_files, search
from pipeline.study.execution import Execution, Stopped
from pipeline.study.family import Family
from pipeline.study.live_table import LiveTable
from pipeline.study.run_files import DIVERGED, FINISHED, UNFINISHED, Run, Trial
from pipeline.study.search import Study

# From gin files and bindings over them to the resolved configuration, `configurable.parameter` to the value's text.
Resolve = Callable[[Sequence[str], Sequence[str]], Mapping[str, str]]

POLL_SECONDS = 0.5
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(study: Study, resolve: Resolve) -> list[Run]:
    """Executes what is missing of a study; returns its runs.

    A run that was killed resumes from its checkpoint; one that diverges is kept, marked and left out. Recipes are
    compared by what `resolve` gives for a run before it starts.

    Raises:
      StudyError: runs of different data or recipes would be mixed, or a run failed.
      Stopped: SIGTERM or Ctrl-C.
    """
    os.makedirs(study.directory, exist_ok=True)
    with _lock(study.directory) as lock, _stop_requested() as stop:
        runs = _read(study)
        live = LiveTable(study, runs)
        if trials := over(runs):
            diverged = sum(run.status == DIVERGED for run in runs)
            live.say(f"{study.directory}: {len(trials)} runs are finished ({diverged} diverged); skipping them.")
        with live.shown():
            live.runs = runs = _run_all(study, resolve, runs, lock, stop, live)
        live.say_result()
        for (variant, epochs), state in search.searches(study, runs).items():
            if state.note:
                live.say(f"{variant}, {epochs:g} epochs: {state.note}.")
    return runs


def _run_all(
    study: Study, resolve: Resolve, runs: list[Run], lock: int, stop: threading.Event, live: LiveTable
) -> list[Run]:
    """Keeps `study.at_once` runs running until none is left; returns all."""
    running: dict[Trial, Execution] = {}
    try:
        while True:
            pending = search.next_trials(study, runs)
            for trial in _in_order(study, pending):
                if len(running) < study.at_once and trial not in running:
                    new = _start(study, resolve, trial, [*runs, *(each.run for each in running.values())])
                    _announce(study, trial, pending[trial], runs, running, live)
                    running[trial] = Execution(arguments(study, trial), new, lock, study.at_once)
            if not running:
                return [run for run in runs if run.status != UNFINISHED]
            live.runs, live.running = runs, list(running)
            time.sleep(POLL_SECONDS)
            if stop.is_set():
                raise Stopped("stopped; the running ones have saved a checkpoint, and the same command resumes them.")
            for trial, execution in list(running.items()):
                if execution.ended:
                    del running[trial]
                    if reason := execution.result():
                        live.say(f"{trial.name} diverged and is left out: {reason}")
                    runs = _read(study)
    except BaseException:
        for execution in running.values():
            execution.tell_to_stop()
        for execution in running.values():
            execution.close()
        raise


def _in_order(study: Study, pending: Iterable[Trial]) -> list[Trial]:
    """What can run now. Several at once: the longest chains first, so that none is left alone at the end."""
    if study.at_once == 1:
        return list(pending)
    return sorted(pending, key=lambda trial: -study.family(trial.variant).variants.index(trial.variant))


def commands(study: Study, resolve: Resolve) -> list[str]:
    """A command for each run that can start now, as a scheduler takes it; each run's trial is written."""
    runs = _read(study)
    pending = [_start(study, resolve, trial, runs) for trial in search.next_trials(study, runs)]
    for new in pending:
        run_files.write_trial(new)
    return [shlex.join(["python", "pipeline/main.py", *arguments(study, new.trial)]) for new in pending]


def arguments(study: Study, trial: Trial) -> list[str]:
    """Arguments of `pipeline/main.py` that run `trial`."""
    files, bindings = configuration(study, trial)
    words = [*(f"--gin_file={file}" for file in files), *(f"--gin_param={binding}" for binding in bindings)]
    return [*words, f"--model_dir={trial.folder(study.directory)}"]


def configuration(study: Study, trial: Trial) -> tuple[list[str], list[str]]:
    """The trial's gin files, and the bindings over them."""
    files, model = study.family(trial.variant).configuration(trial.variant, trial.task)
    bindings = [*study.params, *model, f"SEED={trial.seed}"]
    if trial.task:
        return files, [*bindings, f'INITIAL_CHECKPOINT="{trial.pretraining.folder(study.directory)}"']
    return files, [*bindings, f"EPOCHS={trial.epochs!r}", f"LEARNING_RATE={trial.learning_rate!r}"]


def _start(study: Study, resolve: Resolve, trial: Trial, runs: Sequence[Run]) -> Run:
    """The run of `trial` that is about to start; a StudyError where it does not belong to the study's other `runs`."""
    new = run_files.start(trial, study.directory, resolve(*configuration(study, trial)))
    recipe.check_same([*runs, new])
    return new


def _read(study: Study) -> list[Run]:
    """The study's runs that finished, diverged or saved a checkpoint; a StudyError where they do not fit together."""
    runs = [run for run in run_files.read_any(study.directory) if run.status != UNFINISHED or run.has_checkpoint]
    recipe.check_same(runs)
    return runs


def _announce(
    study: Study, trial: Trial, reason: str, runs: Sequence[Run], running: Iterable[Trial], live: LiveTable
) -> None:
    """Names the run that starts beside those `running`, and the time left."""
    seconds = seconds_left(study, runs)
    live.left = "time left unknown" if seconds is None else f"about {max(1, round(seconds / 60))} min left"
    done = over(runs)
    total = len(done) + len(list(search.remaining(study, runs)))
    name = f"{trial.task or 'pre-training'} {trial.name}"
    number = len(done.union(running)) + 1  # a run that is over may not have ended as a process
    live.say(f"[{number} of about {total}, {live.left}] {name} ({reason})")


def over(runs: Sequence[Run]) -> set[Trial]:
    """The trials of those runs that finished or diverged."""
    return {run.trial for run in runs if run.status != UNFINISHED}


def seconds_left(study: Study, runs: Sequence[Run]) -> float | None:
    """Estimate of the seconds that the rest of the study takes, from the wall time of its runs; None at first.

    A run takes a constant time, one in proportion to its epochs, and one to its epochs and its model's FLOPs; they are
    fitted for each family's pre-trainings and fine-tunings. Of a kind of which one size at most is over, a run takes
    the mean of all.
    """
    finished = [run for run in runs if run.status == FINISHED and run.wall_seconds]
    ahead = list(search.remaining(study, runs))
    seen = {(run.trial.variant, run.trial.epochs) for run in finished}
    if len(seen) < 2 and any((trial.variant, trial.epochs) not in seen for trial in ahead):
        return None  # how much of a run's time is constant is not known
    sizes = {name: size for family in study.members for name, size in _relative_sizes(family, finished).items()}

    def parts(trial: Trial) -> tuple[float, float, float]:
        epochs = 1 if trial.task else trial.epochs
        return 1.0, epochs, epochs * sizes[trial.variant]

    total = 0.0
    for kind in {(trial.family, bool(trial.task)) for trial in ahead}:
        coming = np.array([parts(trial) for trial in ahead if (trial.family, bool(trial.task)) == kind])
        past = [run for run in finished if (run.trial.family, bool(run.trial.task)) == kind]
        known = np.array([parts(run.trial) for run in past])
        if len(set(map(tuple, known))) > 1:
            each, _ = optimize.nnls(known, np.array([run.wall_seconds for run in past]))
            total += np.sum(coming @ each)
        else:
            total += len(coming) * np.mean([run.wall_seconds for run in finished])
    return float(total / study.at_once)


def _relative_sizes(family: Family, finished: Sequence[Run]) -> dict[str, float]:
    """FLOPs of an image by model, up to a factor: counted for NFNets, reported by runs for others.

    A model without a finished run is taken to be twice the one before.
    """
    known = {run.trial.variant: run.summary.get("flops_per_image") for run in finished if not run.trial.task}
    sizes: dict[str, float] = {}
    for variant, model in zip(family.variants, family.models, strict=True):
        if variant == model:
            sizes[variant] = cost.multiply_adds(variant, 224, 1)
        else:
            sizes[variant] = known.get(variant) or 2 * max(sizes.values(), default=0.5)
    return sizes


@contextlib.contextmanager
def _lock(directory: str) -> Iterator[int]:
    path = os.path.join(directory, "lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"Another `scaling_study.py run`, or a run that it started, uses {directory}: wait for its end."
            ) from None
        yield file.fileno()


@contextlib.contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that SIGTERM, Ctrl-C and the end of the terminal set."""
    requested = threading.Event()
    earlier = {number: signal.signal(number, lambda *_: requested.set()) for number in _STOPPING}
    try:
        yield requested
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
