"""Evaluation of a checkpoint of a run."""

import os

import orbit
import tensorflow as tf

from pipeline import report
from pipeline.data import record
from pipeline.data.manifest import Manifest
from pipeline.evaluation import guessing, run_page, split_report
from pipeline.evaluation.collector import Collector
from pipeline.objective import SOFTMAX
from pipeline.train import checkpoint, distribution, tensorboard
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
    split: str = "",
    which_checkpoint: str = checkpoint.NEWEST,
) -> dict[str, float]:
    """Evaluates a checkpoint in `context.model_dir`.

    Prints the metrics, adds them to `metrics.jsonl` and TensorBoard, and writes tables, pictures and a page that shows
    them to `evaluation/SPLIT` in the run's folder.

    Args:
      context: where the run is.
      experiment: the run's experiment.
      loop: where to evaluate.
      split: name of the split; `Data.validation_split` if ''.
      which_checkpoint: as of `checkpoint.find`.

    Returns:
      `loss`, `top1`, `top5`, and where they are defined `macro_f1` and `calibration_error`.

    Raises:
      CheckpointError: there is no checkpoint, or it is of another model.
      ManifestError, ValueError: the records or the split are missing, or have other classes than the checkpoint.
    """
    strategy = loop.create_strategy()
    saved, manifest = checkpoint.find(context.model_dir, which_checkpoint), experiment.data.read_manifest()
    check_classes(saved, manifest, experiment.data.directory)
    split = split or experiment.data.validation_split
    records = experiment.data.split_records(split, manifest)
    with strategy.scope():
        num_classes = experiment.classes(len(manifest.classes))
        model = load_model(saved, lambda _: experiment.create_evaluation_model(num_classes, target_device=None))
    collector = Collector(experiment.objective, several_labels=manifest.label_kind == record.MULTI_LABEL)
    evaluator = Evaluator(strategy, experiment, records, model, loop.eval_batch, collector=collector)
    with quiet_orbit(), explained_errors(strategy):
        controller = orbit.Controller(
            global_step=tf.Variable(saved.step, dtype=tf.int64), evaluator=evaluator, strategy=strategy
        )
        sums = validation_metrics(controller.evaluate(evaluator.steps))
    predictions = collector.result(num_classes)
    metrics = {name.removeprefix("validation_"): value for name, value in sums.items()}
    metrics |= split_report.of_predictions(predictions)
    print(f"{split}, step {saved.step} of {context.model_dir}: {report.describe(metrics)}")
    if distribution.is_chief():
        counts = (
            predictions.class_counts if experiment.objective is SOFTMAX and not predictions.several_labels else None
        )
        notes = guessing.notes(metrics, counts.labelled) if counts else ()
        data = experiment.data.directory
        evaluation = split_report.Evaluation(context.model_dir, saved.step, split, data, metrics, notes)
        print(f"Report: {split_report.write(evaluation, predictions, manifest.classes, records)}")
        lines = report.add_evaluation(context.model_dir, saved.step, split, metrics)
        tensorboard.write_evaluations(context.model_dir, split, lines)
        if tf.io.gfile.exists(os.path.join(context.model_dir, report.CONFIG_FILE)):  # a run, no imported weights
            run_page.write_or_warn(context.model_dir, experiment.data.directory)
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
