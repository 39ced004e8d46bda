"""The summary of a finished run, which `run.json` holds: a function of what the run left."""

import contextlib
from collections.abc import Mapping, Sequence

from pipeline.model import cost, graph_cost, speeds, variants
from pipeline.train.actions import validation_metrics
from pipeline.train.components import RunComponents
from pipeline.train.experiment import Experiment
from pipeline.train.run_config import RunContext
from pipeline.train.state import weights_digest


def summarize(
    context: RunContext,
    experiment: Experiment,
    run: RunComponents,
    evaluation: Mapping[str, float],
    seconds: float,
    damaged_records: Sequence[str],
) -> dict:
    """Returns the summary.

    Args:
      context, experiment: what the run was told.
      run: what it worked with, after its last step.
      evaluation: metrics of its last evaluation.
      seconds: spent in training steps, before interruptions too.
      damaged_records: names of the records that were left out.
    """
    entries = run.ledger_entries()
    examples = sum(entry.examples for entry in entries)
    images, passes = examples * experiment.data.augmentation.repeats, experiment.gradient_passes
    flops = _flops_per_image(experiment, run)
    return {
        "variant": run.state.variant,
        "parameters": sum(v.shape.num_elements() for v in run.state.model.trainable_variables),
        "flops_per_image": flops,
        "step": run.state.step,
        "epochs": experiment.epochs,
        "examples_seen": examples,
        "images_seen": images,
        "gradient_passes": passes,
        **core_hours(run.state.variant, images, flops, passes),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        **validation_metrics(evaluation),
        "bindings": context.bindings,
        "config_digest": context.config_digest,
        "data_digest": run.records.manifest.digest,
        "weights_digest": weights_digest(run.state.model),
        "damaged_records": list(damaged_records),
        "ledger": [entry.as_dict() for entry in entries],
    }


def _flops_per_image(experiment: Experiment, run: RunComponents) -> int:
    """Of a forward pass at the training resolution, two a multiply-add; a training step takes three times that."""
    size = experiment.data.train_size
    if run.state.variant not in variants.VARIANTS:
        return 2 * graph_cost.multiply_adds(run.state.model, size)
    num_classes = experiment.classes(len(run.records.manifest.classes))
    return 2 * cost.multiply_adds(run.state.variant, size, num_classes)


def core_hours(variant: str, images: int, flops_per_image: int, passes: int) -> dict[str, float | str | None]:
    """What the run would take on TPU v4 by the cost model, and its source; None for networks that it does not cover."""
    hours, source = None, None
    if variant in variants.VARIANTS:
        with contextlib.suppress(speeds.UnknownSpeedError):
            hours = speeds.core_hours(variant, images, 3 * flops_per_image, passes)
            source = speeds.speed(variant, 3 * flops_per_image).source
    return {"tpu_v4_core_hours": hours, "tpu_v4_speed": source}
