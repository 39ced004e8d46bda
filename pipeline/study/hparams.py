"""The runs of a study for TensorBoard's HParams: settings and results of each, in `tensorboard/` of the study."""

import os
from collections.abc import Sequence

import tensorflow as tf
from tensorboard.plugins.hparams import api

from pipeline import files
from pipeline.study.run_files import FINISHED, FLOPS, Run

FOLDER = "tensorboard"


def write(directory: str, runs: Sequence[Run]) -> str:
    """Writes the settings, loss and top-1 of every finished run, in place of earlier files; returns their folder."""
    folder = os.path.join(directory, FOLDER)
    if tf.io.gfile.exists(folder):
        files.remove_folder(folder)
    for run in runs:
        if run.status != FINISHED:
            continue
        trial = run.trial
        settings = {
            "family": trial.family,
            "model": trial.variant,
            "task": trial.task or "pre-training",
            "epochs": trial.epochs,
            "learning_rate": trial.learning_rate,
            "seed": trial.seed,
        }
        results = {"validation_loss": run.loss, "validation_top1": 1 - run.error}
        if not trial.task:
            results["flops"] = run.compute(FLOPS)
        writer = tf.summary.create_file_writer(os.path.join(folder, trial.task or "pretrain", trial.name))
        with writer.as_default():
            api.hparams(settings, trial_id=f"{trial.task}{trial.name}")
            for name, value in results.items():
                tf.summary.scalar(name, value, step=run.summary.get("step", 0))
        writer.close()
    return folder
