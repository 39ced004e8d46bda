"""Runs a study on this machine, a run of `pipeline/main.py` after the other or several at once; skips what is done."""

import contextlib
import fcntl
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from pipeline.model import cost
from pipeline.study import runs as reading
from pipeline.study import search
from pipeline.study.errors import StudyError
from pipeline.study.execution import Execution, Stopped
from pipeline.study.runs import Run, Trial
from pipeline.study.search import Study

LOOK_SECONDS = 0.5
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(study: Study) -> list[Run]:
    """Executes what is missing of a study; returns its runs.

    A run that was killed goes on from its checkpoint; one that diverges is kept, marked and left out.

    Raises:
      StudyError: runs of different data or recipes would be mixed, or a run failed.
      Stopped: SIGTERM or Ctrl-C.
    """
    os.makedirs(study.directory, exist_ok=True)
    with _lock(study.directory) as lock, _stop_asked() as stop:
        done = _belonging(study)
        with Progress(study, done) as progress:
            done = _run_all(study, done, lock, stop, progress)
            for (variant, epochs), state in search.searches(study, {r.trial: r for r in done}).items():
                if state.note:
                    progress.say(f"{variant}, {epochs:g} epochs: {state.note}.")
    return done


def _run_all(study: Study, done: list[Run], lock: int, stop: threading.Event, progress: "Progress") -> list[Run]:
    """Keeps `study.at_once` runs at work until none is left; returns all."""
    working: dict[Trial, Execution] = {}
    try:
        while True:
            for wanted in _in_order(study, done):
                if len(working) < study.at_once and wanted.trial not in working:
                    progress.show(wanted, done, len(working))
                    working[wanted.trial] = Execution(
                        arguments(study, wanted.trial), wanted.trial, study.directory, lock
                    )
            if not working:
                return done
            time.sleep(LOOK_SECONDS)
            progress.tick()
            if stop.is_set():
                raise Stopped("stopped; the runs at work have saved a checkpoint, and the same command goes on.")
            for trial, execution in list(working.items()):
                execution.check(done)
                if execution.ended:
                    del working[trial]
                    if reason := execution.result():
                        progress.say(f"{trial.name} diverged and is left out: {reason}")
                    done = _belonging(study)
                    progress.count(done)
    except StudyError:
        _stop(working)
        for execution in working.values():
            execution.discard_if_strange(done)
        raise
    except BaseException:
        _stop(working)
        raise


def _stop(working: dict[Trial, Execution]) -> None:
    for execution in working.values():
        execution.tell_to_stop()
    for execution in working.values():
        execution.close()


def _in_order(study: Study, done: Sequence[Run]) -> list[search.Wanted]:
    """What can run now. Several at once: the longest chains first, so that none is left alone at the end."""
    wanted = search.next_trials(study, done)
    if study.at_once == 1:
        return wanted
    return sorted(wanted, key=lambda one: -cost.multiply_adds(one.trial.variant, 224, 1))


def commands(study: Study) -> list[str]:
    """A command for each run that can start now, as a scheduler takes it; each run's folder is noted down."""
    done = _belonging(study) if os.path.isdir(study.directory) else []
    lines = []
    for wanted in search.next_trials(study, done):
        reading.write_trial(wanted.trial, study.directory)
        lines.append(shlex.join(["python", "pipeline/main.py", *arguments(study, wanted.trial)]))
    return lines


def arguments(study: Study, trial: Trial) -> list[str]:
    """What `pipeline/main.py` is told to run `trial`."""
    bindings = [*study.params, f'nfnet.variant="{trial.variant}"', f"SEED={trial.seed}"]
    if trial.task:
        bindings.append(f'INITIAL_CHECKPOINT="{trial.pretraining.folder(study.directory)}"')
    else:
        bindings += [f"EPOCHS={trial.epochs!r}", f"LEARNING_RATE={trial.learning_rate!r}"]
    file = study.tasks[trial.task] if trial.task else study.pretrain_file
    params = (f"--gin_param={binding}" for binding in bindings)
    return [f"--gin_file={file}", *params, f"--model_dir={trial.folder(study.directory)}"]


class Progress:
    """Says which run begins, how many are done and to come, and the time left; on a terminal a line shows it too."""

    def __init__(self, study: Study, done: Sequence[Run]):
        self._study, self._known = study, over(done)
        if done:
            diverged = sum(run.status == reading.DIVERGED for run in done)
            self.say(f"{study.directory}: {len(self._known)} runs are finished ({diverged} diverged); skipping them.")
        self._bar = tqdm(
            desc="study",
            initial=len(self._known),
            total=len(self._known) + len(list(search.remaining(study, done))),
            bar_format="{desc}: {bar:20} {n_fmt}/{total_fmt} runs, {elapsed}{postfix}",
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def show(self, wanted: search.Wanted, done: Sequence[Run], working: int) -> None:
        """Names the run that begins beside those at work, and the time left."""
        left = seconds_left(self._study, done)
        left = "time left not known yet" if left is None else f"about {max(1, round(left / 60))} min left"
        what = f"{wanted.trial.task or 'pre-training'} {wanted.trial.name}"
        total = len(self._known) + len(list(search.remaining(self._study, done)))
        self._bar.total = total
        self._bar.set_postfix_str(f"{left}, {what}")
        self.say(f"[{len(self._known) + working + 1} of about {total}, {left}] {what} ({wanted.reason})")

    def tick(self) -> None:
        """Redraws the line."""
        self._bar.refresh()

    def count(self, done: Sequence[Run]) -> None:
        """Moves to the runs done."""
        trials = over(done)
        self._bar.update(len(trials) - len(self._known))
        self._known = trials

    @staticmethod
    def say(message: str) -> None:
        """Writes a line that stays."""
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


def over(runs: Sequence[Run]) -> set[Trial]:
    """The trials of those runs that are over."""
    return {run.trial for run in runs if run.status != reading.UNFINISHED}


def seconds_left(study: Study, done: Sequence[Run]) -> float | None:
    """Seconds that the rest of the study takes, by the wall time of runs done; None before the first.

    A run takes a start and a time in proportion to its model's multiply-adds and epochs; both are fitted, for
    pre-training and fine-tuning each.
    """

    def work(trial: Trial) -> float:
        return cost.multiply_adds(trial.variant, 224, 1) * (1 if trial.task else trial.epochs)

    total = 0.0
    ahead = list(search.remaining(study, done))
    finished = [run for run in done if run.status == reading.FINISHED and run.wall_seconds]
    for is_task in (False, True):
        coming = [work(trial) for trial in ahead if bool(trial.task) == is_task]
        past = [(work(run.trial), run.wall_seconds) for run in finished if bool(run.trial.task) == is_task]
        if coming and not past:
            if not finished or not is_task:
                return None
            past = [(work(run.trial), run.wall_seconds) for run in finished[:1]]  # no fine-tuning yet: as the first run
        if coming:
            x, y = np.array(past).T
            slope = y.mean() / x.mean()
            if len(set(x)) > 1:
                slope = min(max(np.polyfit(x, y, 1)[0], 0.0), slope)
            total += sum(y.mean() + slope * (one - x.mean()) for one in coming)
    return total / study.at_once


def _belonging(study: Study) -> list[Run]:
    """The runs of the study's folder; a StudyError where they do not belong together."""
    try:
        found = reading.read(study.directory)
    except StudyError:
        if any(reading.TRIAL_FILE in files for _, _, files in os.walk(study.directory)):
            raise
        return []  # none yet
    reading.check_same(found)
    return [run for run in found if run.status != reading.UNFINISHED]


@contextlib.contextmanager
def _lock(directory: str) -> Iterator[int]:
    path = os.path.join(directory, "lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"Another `scaling_study.py run`, or a run that it started, works in {directory}: wait for its end."
            ) from None
        yield file.fileno()


@contextlib.contextmanager
def _stop_asked() -> Iterator[threading.Event]:
    """An event that SIGTERM, Ctrl-C and the end of the terminal set."""
    asked = threading.Event()
    earlier = {number: signal.signal(number, lambda *_: asked.set()) for number in _STOPPING}
    try:
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
