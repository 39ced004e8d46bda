"""What a study's runs leave on disk, read back: which run is which, how it ended, and what it cost.

DIR/pretrain/NAME/          a run of pipeline/main.py; also trial.json, log.txt and, where it diverged, diverged.txt
DIR/finetune/TASK/NAME/     the fine-tuning of that run
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping

from pipeline import files
from pipeline.model import speeds
from pipeline.study import StudyError

PRETRAIN, FINETUNE = "pretrain", "finetune"
TRIAL_FILE, DIVERGED_FILE = "trial.json", "diverged.txt"
SPEEDS_FILE = "tpu_v4_speeds.json"  # of a study: what the TPU's compiler estimates for its own models
SUMMARY_FILE, CONFIG_FILE = "run.json", "config.gin"
FINISHED, DIVERGED, UNFINISHED = "finished", "diverged", "unfinished"
NFNET = "NFNet"  # the family of a study that names none
CORE_HOURS, FLOPS, SECONDS = "core_hours", "flops", "seconds"
UNITS = {
    CORE_HOURS: "TPU-v4 core-hours of pre-training",
    FLOPS: "FLOPs of pre-training",
    SECONDS: "seconds of pre-training",
}


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One run of a study.

    Epochs and peak learning rate are those of pre-training; `task` is the fine-tuning task, '' for pre-training itself.
    `variant` is the model's name, which one `family` of the study has.
    """

    variant: str
    epochs: float
    learning_rate: float
    seed: int = 0
    task: str = ""
    family: str = NFNET

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
    """A trial with what it left.

    Attributes:
      status: 'finished', 'diverged' or 'unfinished'.
      bindings: its resolved configuration, `configurable.parameter` to the value's text.
      summary: its run.json; empty unless it is finished.
      wall_seconds: that it took so far, with the start of its processes.
      tpu_speed: of its model by the study's own estimate, None where it has none.
    """

    trial: Trial
    folder: str
    status: str
    bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    summary: Mapping = dataclasses.field(default_factory=dict)
    wall_seconds: float = 0.0
    tpu_speed: speeds.Speed | None = None

    @property
    def loss(self) -> float:
        """Held-out loss; infinite where the run diverged."""
        return self.summary["validation_loss"] if self.status == FINISHED else math.inf

    @property
    def error(self) -> float:
        """Held-out top-1 error, a fraction."""
        return 1 - self.summary["validation_top1"]

    @property
    def has_checkpoint(self) -> bool:
        """Whether it has saved anything to resume from."""
        checkpoints = os.path.join(self.folder, "checkpoints")
        return os.path.isdir(checkpoints) and bool(os.listdir(checkpoints))

    def compute(self, unit: str) -> float:
        """Compute of the run in `unit`, one of `UNITS`.

        Raises:
          StudyError: the unit is unknown, or run.json does not hold what it takes.
        """
        try:
            if unit == SECONDS:
                return self.summary["seconds"]
            images, passes = self.summary["images_seen"], self.summary["gradient_passes"]
            flops = 3 * self.summary["flops_per_image"]
            if unit == FLOPS:
                return flops * images * passes
            if unit == CORE_HOURS and self.tpu_speed:
                return self.tpu_speed.core_hours(images, passes)
            if unit == CORE_HOURS:
                return speeds.core_hours(self.summary["variant"], images, flops, passes)
        except KeyError as error:
            path = os.path.join(self.folder, SUMMARY_FILE)
            raise StudyError(f"{path} lacks {error}, so its compute in {unit} is unknown: run it again.") from error
        except speeds.UnknownSpeedError as error:
            raise StudyError(f"The cost of {self.trial.variant} in {unit} is unknown. {error}") from error
        raise StudyError(f"Unknown unit {unit!r}; expected one of {', '.join(UNITS)}.")


def read(directory: str) -> list[Run]:
    """All runs of the study in `directory`, sorted.

    Raises:
      StudyError: the folder does not exist or holds no run, or a file in it cannot be read.
    """
    if not os.path.isdir(directory):
        raise StudyError(f"No study in {directory!r}: the folder does not exist. Make one with `scaling_study.py run`.")
    if not (runs := read_any(directory)):
        raise StudyError(f"No run in {directory!r} (no {TRIAL_FILE} below it): start with `scaling_study.py run`.")
    return runs


def read_any(directory: str) -> list[Run]:
    """As `read`; empty where there is no run yet."""
    estimates = speeds.read_table(os.path.join(directory, SPEEDS_FILE), "models")
    runs = [_read_run(folder) for folder, _, names in os.walk(directory) if TRIAL_FILE in names]
    runs = [dataclasses.replace(run, tpu_speed=estimates.get(run.trial.variant)) for run in runs]
    return sorted(runs, key=lambda run: (run.trial.task, run.trial))


def start(trial: Trial, directory: str, bindings: Mapping[str, str]) -> Run:
    """The run of `trial` that is about to start or to resume; nothing is written yet."""
    folder = trial.folder(directory)
    earlier = _read_run(folder).wall_seconds if os.path.exists(os.path.join(folder, TRIAL_FILE)) else 0.0
    return Run(trial, folder, UNFINISHED, bindings, wall_seconds=earlier)


def write_trial(run: Run) -> None:
    """Writes the run's trial, its bindings and how long it took so far into its folder."""
    os.makedirs(run.folder, exist_ok=True)
    content = {**dataclasses.asdict(run.trial), "wall_seconds": run.wall_seconds, "bindings": dict(run.bindings)}
    files.write_atomically(os.path.join(run.folder, TRIAL_FILE), json.dumps(content, indent=1))


def _read_run(folder: str) -> Run:
    trial_path, summary_path = (os.path.join(folder, name) for name in (TRIAL_FILE, SUMMARY_FILE))
    content, summary = _read_json(trial_path), {}
    try:
        bindings, wall_seconds = content.pop("bindings", None), content.pop("wall_seconds", 0.0)
        trial = Trial(**content)
    except (AttributeError, TypeError) as error:
        raise StudyError(f"{trial_path} describes no trial: {error}.") from error
    if os.path.exists(os.path.join(folder, DIVERGED_FILE)):
        status = DIVERGED
    elif not os.path.exists(summary_path):
        status = UNFINISHED
    else:
        summary = _read_json(summary_path)
        missing = [name for name in ("validation_loss", "validation_top1", "images_seen") if name not in summary]
        if missing:
            raise StudyError(f"{summary_path} lacks {', '.join(missing)}: was the run stopped before its evaluation?")
        status = FINISHED if math.isfinite(summary["validation_loss"]) else DIVERGED
        bindings = summary.get("bindings")
        summary = _with_counts(summary, bindings or {})
    if bindings is None:
        raise StudyError(
            f"{summary_path if summary else trial_path} has no 'bindings', by which the recipes of runs are compared: "
            "an earlier version of this project wrote it. Run the study again in another Study.directory."
        )
    return Run(trial, folder, status, bindings, summary, wall_seconds)


def _with_counts(summary: dict, bindings: Mapping[str, str]) -> dict:
    """The summary with views and passes, which earlier versions did not count: their `images_seen` are examples."""
    if "examples_seen" in summary:
        return summary
    examples, views = summary["images_seen"], int(bindings.get("Augmentation.repeats", "1"))
    passes = 1 if bindings.get("Experiment.sam", "None") == "None" else 2
    return {**summary, "examples_seen": examples, "images_seen": examples * views, "gradient_passes": passes}


def _read_json(path: str) -> dict:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}.") from error
