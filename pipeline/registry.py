"""What a gin file can name, and what `main.py` does with it."""

import ast
import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from pipeline import configure, report
from pipeline.data import augment, mixing, randaugment
from pipeline.data.input import Data
from pipeline.errors import RemoteFileError, remote_file_error
from pipeline.export import SAVED_MODEL, export
from pipeline.model import garden, hybrid, nfnet
from pipeline.objective import SIGMOID
from pipeline.train import auto_settings, checkpoint, ledger, optimizer, sam, schedule, trainer
from pipeline.train.distribution import PeerLostError
from pipeline.train.evaluate import evaluate
from pipeline.train.experiment import Experiment
from pipeline.train.few_shot import few_shot
from pipeline.train.preemption import Preempted
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.train import train

TASKS = ("train", "evaluate", "few_shot", "export")
# What can go wrong in a way that the message explains; anything else is a defect and shows its traceback.
EXPECTED_ERRORS = (
    ValueError,  # configuration, manifest, settings
    checkpoint.CheckpointError,
    ledger.LedgerError,
    trainer.DivergedError,
    PeerLostError,
    RemoteFileError,
    Preempted,
)


def run_configured(
    files: Sequence[str], params: Sequence[str], model_dir: str, force_resume: bool = False, task: str | None = None
) -> Any:
    """Parses and checks the configuration, then does a task in `model_dir`.

    Args:
      files: gin files; where there are none, the run's own configuration is taken.
      params: bindings over them.
      model_dir: folder of the run.
      force_resume: continue although configuration or data changed.
      task: one of `TASKS`; what `main.run` names where None.

    Returns:
      What `task` returns; None where the configuration names it.
    """
    try:
        resolved = bindings(files or [saved_config(model_dir)], params, say=print)
        context = RunContext(model_dir, configure.text(), resolved, configure.digest(resolved), force_resume)
        return configure.get(task or "main")(context)
    except tf.errors.OpError as error:
        if (problem := remote_file_error(error)) is None:
            raise
        raise problem from error


def bindings(
    files: Sequence[str], params: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> dict[str, str]:
    """Parses and checks the configuration; returns what decides a run's result, `configurable.parameter` to value.

    `say` is told which settings were chosen for the data.
    """
    _load(files, params, say)
    resolved = configure.resolved(ignore=("main", "Loop", *TASKS))
    resolved.pop("Experiment.shard_optimizer", None)  # of where the optimiser's state is, not of what is learned
    # It was the mean over classes once, and a run must not continue under another loss.
    if resolved.get("Experiment.loss") == repr(SIGMOID.name):
        resolved["Experiment.loss"] += ", summed over classes"
    return resolved


def exported(model_dir: str) -> str:
    """The folder of a run's SavedModels; exports the run if it was not yet."""
    directory = os.path.join(model_dir, SAVED_MODEL)
    if not tf.io.gfile.exists(directory):
        run_configured([], [], model_dir, task="export")
    return directory


def default_model_dir(files: Sequence[str]) -> str:
    """The folder of a run that is given none: `runs/NAME` of the last gin file."""
    return os.path.join("runs", os.path.splitext(os.path.basename(files[-1]))[0])


def saved_config(model_dir: str) -> str:
    """The path of the configuration that a run was started with; a ValueError says what to do where there is none."""
    path = os.path.join(model_dir, report.CONFIG_FILE)
    if not tf.io.gfile.exists(path):
        what = f"holds no {report.CONFIG_FILE}" if tf.io.gfile.exists(model_dir) else "does not exist"
        raise ValueError(
            f"{model_dir} {what}, so it is not the folder of a run: give its --gin_file, or the right --model_dir."
        )
    return path


def configured(files: Sequence[str], params: Sequence[str]) -> Experiment:
    """Parses and checks the configuration, and makes its experiment without running it."""
    _load(files, params)
    return configure.get("Experiment")()


def _load(files: Sequence[str], params: Sequence[str], say: Callable[[str], None] = lambda text: None) -> None:
    register()
    configure.load(files, params, entry="main", tasks=TASKS)
    if automatic := configure.automatic():
        names = {"directory": "DATA_DIR", "initial_checkpoint": "INITIAL_CHECKPOINT"}
        names |= {"batch": "GLOBAL_BATCH", "epochs": "EPOCHS", "size": "TRAIN_SIZE"}
        given = {name: configure.macro(macro) for name, macro in names.items() if macro not in automatic}
        part = configure.resolved().get("Data.train_examples", "None")
        chosen = auto_settings.choose(**given, train_examples=ast.literal_eval(part))
        settings = [f"{name} = {chosen.values[name]!r}" for name in automatic]
        say(f"{chosen.reason}: {', '.join(settings)}.")
        configure.load(files, [*params, *settings], entry="main", tasks=TASKS)


def register() -> None:
    """Makes the library's functions and classes known to gin."""
    configure.register(
        {
            "main": main,
            "train": train,
            "evaluate": evaluate,
            "few_shot": few_shot,
            "export": export,
            "Experiment": Experiment,
            "Data": Data,
            "Loop": Loop,
            "Augmentation": augment.Augmentation,
            "RandAugment": randaugment.RandAugment,
            "Mixing": mixing.Mixing,
            "nfnet": nfnet.create,
            "garden": garden.create,
            "hybrid": hybrid.create,
            "sgd": optimizer.SGD,
            "adamw": optimizer.AdamW,
            "SAM": sam.SAM,
            "cosine": schedule.cosine,
            "linear": schedule.linear,
            "constant": schedule.constant,
        }
    )


def main(context: RunContext, run: Callable | Sequence[Callable]) -> None:
    """Calls the task that the configuration names, or several in turn."""
    for task in [run] if callable(run) else run:
        task(context)
