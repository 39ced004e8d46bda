"""Studies on disk whose law is known: loss = FLOOR + (SIZE / parameters)^a + (IMAGES / images seen)^a, times noise."""

import json
import os

import numpy as np

from pipeline.model import cost
from pipeline.study.runs import Trial

FLOOR, EXPONENT, SIZE, IMAGES = 1.5, 0.3, 1e8, 1e9
PAPER = ("F0", "F1", "F3", "F3+", "F7", "F7+")
SMALL = ("pico", "nano", "micro", "tiny")
CONFIG = """# Macros:
DATA_DIR = 'records'
EPOCHS = {epochs}
GLOBAL_BATCH = 1024
LEARNING_RATE = {rate}
SEED = 0

Experiment.data = @Data()
nfnet.variant = '{variant}'
Loop.steps_per_loop = {loop}
main.run = %RUN
sgd.momentum = {momentum}
sgd.long_list = \\
    (1,
     2)
train.experiment = @Experiment()
"""


def best_rate(variant: str, epochs: float) -> float:
    """The best learning rate: falls by two for 4 epochs and more of models beyond F1."""
    return 0.8 if epochs >= 4 and variant not in ("F0", "F1", *SMALL) else 1.6


def loss(variant: str, epochs: float, rate: float, an_epoch: float) -> float:
    """Held-out loss without noise."""
    size, seen = cost.parameters(variant, 1000), epochs * an_epoch
    found = FLOOR + (SIZE / size) ** EXPONENT + (IMAGES / seen) ** EXPONENT
    return found * (1 + 0.05 * np.log2(rate / best_rate(variant, epochs)) ** 2)


def write_run(
    directory,
    trial: Trial,
    *,
    an_epoch=4e9,
    noise=0.0,
    resolution=224,
    momentum=0.9,
    digest="d",
    tuning_epochs=50,
    **changes,
):
    """Writes what a finished run leaves; returns its folder."""
    folder = trial.folder(str(directory))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "trial.json"), "w") as file:
        json.dump({**vars(trial), "wall_seconds": 20.0}, file)
    with open(os.path.join(folder, "config.gin"), "w") as file:
        rest = {"variant": trial.variant, "epochs": trial.epochs, "rate": trial.learning_rate}
        if trial.task:
            rest |= {"epochs": tuning_epochs, "rate": 0.1}
        file.write(CONFIG.format(**rest, momentum=momentum, loop=hash(trial) % 7 + 1))
    value = loss(trial.variant, trial.epochs, trial.learning_rate, an_epoch) * np.exp(noise)
    seen = trial.epochs * an_epoch
    flops = 2 * cost.multiply_adds(trial.variant, resolution, 1000)
    summary = {
        "variant": trial.variant,
        "parameters": cost.parameters(trial.variant, 1000),
        "flops_per_image": flops,
        "epochs": trial.epochs,
        "images_seen": seen,
        "seconds": seen * flops / 1e13,
        "validation_loss": value,
        "validation_top1": 1 - 0.1 * value,
        "data_digest": f"{digest}{trial.task}",
        **changes,
    }
    with open(os.path.join(folder, "run.json"), "w") as file:
        json.dump(summary, file)
    return folder


def write(directory, variants=PAPER, epochs=(0.25, 0.5, 1, 2, 4, 8), rates=(1.6, 0.8), task="", sigma=0.002, **options):
    """Writes a whole study with noise of `sigma`, and the fine-tuning of every run where `task` is given."""
    rng = np.random.default_rng(0)
    for variant in variants:
        for budget in epochs:
            for rate in rates:
                noise = rng.normal(0, sigma)
                trial = Trial(variant, float(budget), rate)
                write_run(directory, trial, noise=noise, **options)
                if task:
                    tuned = Trial(variant, float(budget), rate, task=task)
                    write_run(directory, tuned, noise=rng.normal(0, 5 * sigma), **options)
    return str(directory)
