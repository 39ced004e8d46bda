"""What a gin file can name, and what `main.py` does with it."""

import os
from collections.abc import Callable, Sequence

from pipeline import configure
from pipeline.data import augment, manifest, mixing, randaugment
from pipeline.data import input as inputs
from pipeline.model import garden, nfnet
from pipeline.serve import export as serving
from pipeline.train import (
    checkpoint,
    distribution,
    experiment,
    few_shot,
    ledger,
    optimizer,
    run,
    run_config,
    sam,
    schedule,
    trainer,
)
from pipeline.train.journal import Preempted

TASKS = ("train", "evaluate", "few_shot", "export")
# What can go wrong in a way that the message explains; anything else is a defect and shows its traceback.
EXPECTED_ERRORS = (
    ValueError,  # configuration, manifest, settings
    checkpoint.CheckpointError,
    ledger.LedgerError,
    trainer.DivergedError,
    distribution.PeerLostError,
    Preempted,
)


def run_configured(files: Sequence[str], params: Sequence[str], model_dir: str, force_resume: bool = False) -> None:
    """Parses and checks the configuration, then does what `main.run` names, in `model_dir`."""
    resolved = bindings(files, params)
    context = run_config.RunContext(model_dir, configure.text(), resolved, configure.digest(resolved), force_resume)
    configure.get("main")(context)


def bindings(files: Sequence[str], params: Sequence[str]) -> dict[str, str]:
    """Parses and checks the configuration; returns what decides the result of a run, by `configurable.parameter`."""
    register()
    configure.load(files, params, entry="main", tasks=TASKS)
    return configure.resolved(ignore=("main", "Loop", *TASKS))


def configured(files: Sequence[str], params: Sequence[str]) -> experiment.Experiment:
    """Parses and checks the configuration, and makes its experiment without running it."""
    register()
    configure.load(files, params, entry="main", tasks=TASKS)
    return configure.get("Experiment")()


def register() -> None:
    """Makes the library's functions and classes known to gin."""
    configure.register(
        {
            "main": main,
            "train": run.train,
            "evaluate": run.evaluate,
            "few_shot": few_shot.few_shot,
            "export": export,
            "Experiment": experiment.Experiment,
            "Data": inputs.Data,
            "Loop": run_config.Loop,
            "Augmentation": augment.Augmentation,
            "RandAugment": randaugment.RandAugment,
            "Mixing": mixing.Mixing,
            "nfnet": nfnet.create,
            "garden": garden.create,
            "sgd": optimizer.SGD,
            "adamw": optimizer.AdamW,
            "SAM": sam.SAM,
            "cosine": schedule.cosine,
            "linear": schedule.linear,
            "constant": schedule.constant,
        }
    )


def main(context: run_config.RunContext, run: Callable) -> None:
    """Calls the task that the configuration names."""
    run(context)


def export(context: run_config.RunContext, experiment: experiment.Experiment, directory: str = "", top: int = 5) -> str:
    """Exports the newest checkpoint of the run as a SavedModel; returns its version folder.

    Args:
      context: where the run is.
      experiment: the run's experiment.
      directory: where the version folders go; `saved_model` in the run's folder where ''.
      top: how many class names an answer holds for each image.
    """
    model = run.trained_model(context, experiment)
    classes = manifest.read(experiment.data.directory).classes
    classifier = serving.Classifier(model, classes, experiment.data.eval_size, top, experiment.loss)
    path = serving.export(classifier, directory or os.path.join(context.model_dir, "saved_model"))
    print(f"Exported to {path}; try: python pipeline/predict.py --saved_model={path} IMAGE")
    return path
