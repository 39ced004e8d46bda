"""Studies on disk whose law is known: loss = FLOOR + (SIZE / parameters)^a + (IMAGES / images seen)^a, times noise.

A second family has models `vit_F0` and so on, which learn as F0 does and take `ratio` times its compute.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from pipeline.model import cost, variants
from pipeline.study import run_files
from pipeline.study.run_files import NFNET, Trial
from tests import parameter_count

FLOOR, EXPONENT, SIZE, IMAGES = 1.5, 0.3, 1e8, 1e9
PAPER = tuple(variants.STUDY_CORE_BATCHES)
VIT = "ViT"  # name of the second family


def nfnet(variant: str) -> str:
    """The NFNet that a model learns as."""
    return variant.removeprefix("vit_")


def best_rate(variant: str, epochs: float) -> float:
    """The best learning rate: falls by two for 4 epochs and more of models beyond F1."""
    return 0.8 if epochs >= 4 and nfnet(variant) not in ("F0", "F1", *variants.SMALL) else 1.6


def loss(variant: str, epochs: float, rate: float, images: float) -> float:
    """Held-out loss without noise."""
    size, seen = parameter_count.parameters(nfnet(variant), 1000), epochs * images
    best = FLOOR + (SIZE / size) ** EXPONENT + (IMAGES / seen) ** EXPONENT
    return best * (1 + 0.05 * np.log2(rate / best_rate(variant, epochs)) ** 2)


def bindings(trial: Trial, momentum: float = 0.9, tuning_epochs: int = 50, batch: int = 1024) -> dict[str, str]:
    """A resolved configuration of `trial`."""
    epochs, rate = (tuning_epochs, 0.1) if trial.task else (trial.epochs, trial.learning_rate)
    values = {
        "Data.batch": batch,
        "Data.directory": f"records of {trial.name}",
        "Experiment.epochs": epochs,
        "Experiment.seed": trial.seed,
        "cosine.peak": rate,
        **({"garden.settings": trial.variant} if trial.family == VIT else {"nfnet.variant": trial.variant}),
        **({"adamw.weight_decay": 0.05} if trial.family == VIT else {"sgd.momentum": momentum}),
    }
    return {name: repr(value) for name, value in values.items()}


def write_run(
    directory: str | os.PathLike,
    trial: Trial,
    *,
    images: float = 4e9,
    noise: float = 0.0,
    resolution: int = 224,
    digest: str = "d",
    ratio: float = 1.0,
    settings: Mapping = MappingProxyType({}),
    **changes,
) -> str:
    """Writes what a finished run leaves; returns its folder.

    Args:
      directory, trial: which run of which study.
      images: of an epoch.
      noise: on the logarithm of the loss.
      resolution, digest: of its images and records.
      ratio: of its compute to that of the NFNet that it learns as.
      settings: of its `bindings`.
      **changes: in its summary.
    """
    run = run_files.start(trial, str(directory), bindings(trial, **settings))
    run_files.write_trial(dataclasses.replace(run, wall_seconds=20.0))
    value = loss(trial.variant, trial.epochs, trial.learning_rate, images) * np.exp(noise)
    seen = trial.epochs * images
    flops = 2 * ratio * cost.multiply_adds(nfnet(trial.variant), resolution, 1000)
    summary = {
        "variant": "vit" if trial.family == VIT else trial.variant,
        "parameters": parameter_count.parameters(nfnet(trial.variant), 1000),
        "flops_per_image": flops,
        "epochs": trial.epochs,
        "images_seen": seen,
        "seconds": seen * flops / 1e13,
        "validation_loss": value,
        "validation_top1": 1 - 0.1 * value,
        "bindings": run.bindings,
        "data_digest": f"{digest}{trial.task}",
        **changes,
    }
    with open(os.path.join(run.folder, run_files.SUMMARY_FILE), "w") as file:
        json.dump(summary, file)
    return run.folder


def write(
    directory: str | os.PathLike,
    variants: Sequence[str] = PAPER,
    epochs: Sequence[float] = (0.25, 0.5, 1, 2, 4, 8),
    rates: Sequence[float] = (1.6, 0.8),
    task: str = "",
    sigma: float = 0.002,
    family: str = NFNET,
    seed: int = 0,
    **options,
) -> str:
    """Writes a family of a study with noise of `sigma`, and the fine-tuning of every run where `task` is given."""
    rng = np.random.default_rng(seed)
    for variant in variants:
        for budget in epochs:
            for rate in rates:
                noise = rng.normal(0, sigma)
                trial = Trial(variant, float(budget), rate, family=family)
                write_run(directory, trial, noise=noise, **options)
                if task:
                    tuned = dataclasses.replace(trial, task=task)
                    write_run(directory, tuned, noise=rng.normal(0, 5 * sigma), **options)
    return str(directory)


def write_two_families(directory: str | os.PathLike, ratio: float, variants: Sequence[str] = PAPER, **options) -> str:
    """Writes a study of NFNets and of ViTs that take `ratio` times their compute."""
    write(directory, variants, **options)
    options["seed"] = options.get("seed", 0) + 1000
    return write(directory, [f"vit_{name}" for name in variants], family=VIT, ratio=ratio, **options)
