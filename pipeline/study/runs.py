"""What a study's runs leave on disk, read back: which run is which, how it ended, and whether they belong together.

DIR/pretrain/NAME/          a run of pipeline/main.py; also trial.json, log.txt and, where it diverged, diverged.txt
DIR/finetune/TASK/NAME/     the fine-tuning of that run
"""

import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence

from pipeline import files
from pipeline.study.errors import StudyError

PRETRAIN, FINETUNE = "pretrain", "finetune"
TRIAL_FILE, DIVERGED_FILE = "trial.json", "diverged.txt"
SUMMARY_FILE, CONFIG_FILE = "run.json", "config.gin"
FINISHED, DIVERGED, UNFINISHED = "finished", "diverged", "unfinished"

# What differs between the runs of a study on purpose, or says how and where a run works and not what it computes.
_SWEPT = r"SEED|INITIAL_CHECKPOINT|nfnet\.variant"
_SWEPT_IN_PRETRAINING = rf"{_SWEPT}|EPOCHS|LEARNING_RATE"
_NO_RECIPE = r"(DATA_DIR|RUN) =|(Loop|main)\.|\w+\.\w+ = @(Experiment|Loop)\(\)"


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One run of a study.

    Attributes:
      variant: of the model.
      epochs: budget of pre-training.
      learning_rate: peak of pre-training.
      seed: of pre-training; fine-tuning takes the same.
      task: name of the fine-tuning task, '' for pre-training itself.
    """

    variant: str
    epochs: float
    learning_rate: float
    seed: int = 0
    task: str = ""

    @property
    def name(self) -> str:
        """The run's name, the same for a pre-training and its fine-tunings."""
        variant = self.variant.replace("+", "plus")
        return f"{variant}_e{self.epochs:g}_lr{self.learning_rate:g}_s{self.seed}"

    def folder(self, directory: str) -> str:
        """The run's folder in the study `directory`."""
        return os.path.join(directory, *((FINETUNE, self.task) if self.task else (PRETRAIN,)), self.name)

    @property
    def pretraining(self) -> "Trial":
        """The pre-training that a fine-tuning starts from."""
        return dataclasses.replace(self, task="")


@dataclasses.dataclass(frozen=True)
class Run:
    """A trial with what it left: `status` is 'finished', 'diverged' or 'unfinished'; `summary` is its run.json."""

    trial: Trial
    folder: str
    status: str
    summary: dict = dataclasses.field(default_factory=dict)
    wall_seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Held-out loss; infinite where the run diverged."""
        return self.summary["validation_loss"] if self.status == FINISHED else math.inf

    @property
    def error(self) -> float:
        """Held-out top-1 error, a fraction."""
        return 1 - self.summary["validation_top1"]


def read(directory: str) -> list[Run]:
    """All runs of the study in `directory`, sorted.

    Raises:
      StudyError: the folder does not exist or holds no run, or a file in it cannot be read.
    """
    if not os.path.isdir(directory):
        raise StudyError(f"No study in {directory!r}: the folder does not exist. Make one with `scaling_study.py run`.")
    runs = [_read_run(folder) for folder, _, files in os.walk(directory) if TRIAL_FILE in files]
    if not runs:
        raise StudyError(f"No run in {directory!r} (no {TRIAL_FILE} below it): start with `scaling_study.py run`.")
    return sorted(runs, key=lambda run: (run.trial.task, run.trial))


def read_one(trial: Trial, directory: str) -> Run | None:
    """The run of `trial`, None where it was never started."""
    folder = trial.folder(directory)
    return _read_run(folder) if os.path.exists(os.path.join(folder, TRIAL_FILE)) else None


def write_trial(trial: Trial, directory: str, wall_seconds: float = 0.0) -> str:
    """Notes in the run's folder which trial it is, and how long it took so far; returns the folder."""
    folder = trial.folder(directory)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, TRIAL_FILE)
    files.write_atomically(path, json.dumps({**dataclasses.asdict(trial), "wall_seconds": wall_seconds}))
    return folder


def has_checkpoint(folder: str) -> bool:
    """Whether a run has saved anything to go on from."""
    checkpoints = os.path.join(folder, "checkpoints")
    return os.path.isdir(checkpoints) and bool(os.listdir(checkpoints))


def forget_recipe(folder: str) -> None:
    """Removes a run's configuration, which its next attempt writes anew."""
    path = os.path.join(folder, CONFIG_FILE)
    if os.path.exists(path):
        os.remove(path)


def check_same(runs: Iterable[Run]) -> None:
    """Refuses to mix: all pre-trainings share data, evaluation set and recipe, and so do all fine-tunings of a task.

    Raises:
      StudyError: naming two runs that differ, and in what.
    """
    first: dict[str, Run] = {}
    recipes: dict[str, list[str]] = {}
    for run in runs:
        if (found := recipe(run.folder, run.trial.task)) is None:
            continue
        task = run.trial.task
        if task in first and found != recipes[task]:
            lines = difflib.unified_diff(recipes[task], found, lineterm="", n=0)
            changed = "\n  ".join(line for line in lines if re.match(r"[+-][^+-]", line))
            raise StudyError(_mixed(first[task], run, f"recipe (- the first, + the second):\n  {changed}"))
        digests = [r.summary.get("data_digest") for r in (first.get(task, run), run)]
        if None not in digests and digests[0] != digests[1]:
            raise StudyError(_mixed(first[task], run, "training or evaluation records: their data_digest differs."))
        if task not in first or "data_digest" not in first[task].summary:
            first[task], recipes[task] = run, found


def recipe(folder: str, task: str = "") -> list[str] | None:
    """The lines of a run's `config.gin` that decide its result, but for what a study varies; None before its start."""
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.exists(path):
        return None
    with open(path) as file:
        lines = [line.rstrip() for line in file if line.strip() and not line.startswith("#")]
    statements: list[str] = []
    for line in lines:  # gin indents what goes on from the line before
        if line[0].isspace() and statements:
            statements[-1] += " " + line.strip()
        else:
            statements.append(line)
    ignored = rf"({_SWEPT if task else _SWEPT_IN_PRETRAINING}) =|{_NO_RECIPE}"
    return sorted(statement for statement in statements if not re.match(ignored, statement))


@dataclasses.dataclass(frozen=True)
class Cell:
    """A variant with an epoch budget, at its best learning rate.

    Attributes:
      variant, epochs, learning_rate: which.
      loss: held-out loss, the geometric mean over seeds.
      runs: the finished runs at that learning rate, one a seed.
      tried: all learning rates that were tried.
    """

    variant: str
    epochs: float
    learning_rate: float
    loss: float
    runs: tuple[Run, ...]
    tried: tuple[float, ...]

    @property
    def edge(self) -> str:
        """'lower' or 'upper' where the best learning rate is the least or largest of those tried, else ''."""
        if self.learning_rate == min(self.tried):
            return "lower"
        return "upper" if self.learning_rate == max(self.tried) else ""


def cells(runs: Sequence[Run]) -> list[Cell]:
    """The best learning rate of every variant and epoch budget with a finished pre-training.

    The learning rate is chosen by the first seed, with which all were tried; the loss is the mean over seeds.
    """
    found = []
    pretraining = [run for run in runs if not run.trial.task and run.status != UNFINISHED]
    for key in sorted({(run.trial.variant, run.trial.epochs) for run in pretraining}):
        here = [run for run in pretraining if (run.trial.variant, run.trial.epochs) == key]
        seed = here[0].trial.seed if len({run.trial.seed for run in here}) == 1 else _first_seed(here)
        best = min((run for run in here if run.trial.seed == seed), key=lambda run: run.loss)
        if best.status != FINISHED:
            continue
        rate = best.trial.learning_rate
        same = tuple(run for run in here if run.trial.learning_rate == rate and run.status == FINISHED)
        loss = math.exp(sum(math.log(run.loss) for run in same) / len(same))
        tried = tuple(sorted({run.trial.learning_rate for run in here}))
        found.append(Cell(*key, rate, loss, same, tried))
    return found


def _first_seed(runs: Sequence[Run]) -> int:
    """The seed with which most learning rates were tried."""
    seeds = [run.trial.seed for run in runs]
    return max(sorted(set(seeds)), key=seeds.count)


def _read_run(folder: str) -> Run:
    noted = _read_json(os.path.join(folder, TRIAL_FILE))
    try:
        wall_seconds = noted.pop("wall_seconds", 0.0)
        trial = Trial(**noted)
    except (AttributeError, TypeError) as error:
        raise StudyError(f"{os.path.join(folder, TRIAL_FILE)} describes no trial: {error}.") from error
    if os.path.exists(os.path.join(folder, DIVERGED_FILE)):
        return Run(trial, folder, DIVERGED, {}, wall_seconds)
    path = os.path.join(folder, SUMMARY_FILE)
    if not os.path.exists(path):
        return Run(trial, folder, UNFINISHED, {}, wall_seconds)
    summary = _read_json(path)
    missing = [name for name in ("validation_loss", "validation_top1", "images_seen") if name not in summary]
    if missing:
        raise StudyError(f"{path} lacks {', '.join(missing)}: was the run stopped before its evaluation?")
    status = FINISHED if math.isfinite(summary["validation_loss"]) else DIVERGED
    return Run(trial, folder, status, summary, wall_seconds)


def _read_json(path: str) -> dict:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}.") from error


def _mixed(one: Run, other: Run, what: str) -> str:
    return (
        f"{one.folder} and {other.folder} do not belong to one study; they differ in {what}\n"
        "Keep each recipe and each data set in a study of its own: set another Study.directory, or move one run away."
    )
