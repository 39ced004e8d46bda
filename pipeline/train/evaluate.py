"""Evaluation of a run's newest checkpoint."""

import orbit
import tensorflow as tf

from pipeline import report
from pipeline.data.manifest import Manifest
from pipeline.train import checkpoint, distribution
from pipeline.train.actions import validation_metrics
from pipeline.train.checkpoint import Saved
from pipeline.train.controller import explained_errors, quiet_orbit
from pipeline.train.evaluator import Evaluator
from pipeline.train.experiment import Experiment
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.trained_model import load_model


def evaluate(
    context: RunContext,
    experiment: Experiment,
    loop: Loop = Loop(),  # noqa: B008 (frozen)
    which_checkpoint: str = checkpoint.NEWEST,
) -> dict:
    """Evaluates a checkpoint in `context.model_dir` on the validation split; returns and prints its metrics.

    `which_checkpoint` is as of `checkpoint.find`.

    Raises:
      CheckpointError: there is no checkpoint, or it is of another model.
      ManifestError, ValueError: the records are missing, or have other classes than the checkpoint.
    """
    distribution.check_cpu_kernels()
    strategy = loop.create_strategy()
    saved, manifest = checkpoint.find(context.model_dir, which_checkpoint), experiment.data.read_manifest()
    check_classes(saved, manifest, experiment.data.directory)
    records = experiment.data.validation_records(manifest)
    with strategy.scope():
        num_classes = experiment.classes(len(manifest.classes))
        model = load_model(saved, lambda _: experiment.create_evaluation_model(num_classes, target_device=None))
    evaluator = Evaluator(strategy, experiment, records, model, loop.eval_batch)
    with quiet_orbit(), explained_errors(strategy):
        controller = orbit.Controller(
            global_step=tf.Variable(saved.step, dtype=tf.int64), evaluator=evaluator, strategy=strategy
        )
        metrics = validation_metrics(controller.evaluate(evaluator.steps))
    print(f"step {saved.step} of {context.model_dir}: {report.describe(metrics)}")
    return metrics


def check_classes(saved: Saved, manifest: Manifest, directory: str) -> None:
    """Raises a ValueError where the checkpoint was trained on other classes than the records have."""
    trained = saved.facts.get("class_names")
    if trained is None or tuple(trained) == manifest.classes:
        return
    have = manifest.classes
    if unseen := sorted(set(have) - set(trained)):
        what = f"{len(have)} others, such as {unseen[0]!r}"
        advice = "To see what its features are worth on these classes, use --task=few_shot."
    else:
        missing = sorted(set(trained) - set(have))
        what = f"{len(have)} of them, without {missing[0]!r}" if missing else "the same in another order"
        advice = (
            "Build the records again with --classes_of=SET, the record set that it was trained on, or with "
            f"--classes=FILE, a file of its classes, one on each line: class_names in {saved.path}/checkpoint.json."
        )
    raise ValueError(
        f"{saved.path} was trained on {len(trained)} classes, and {directory} has {what}: its answers would be counted "
        f"against other names. {advice}"
    )
