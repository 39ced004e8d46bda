"""One run from its first step to its summary: restore, train, evaluate, report."""

import contextlib
import dataclasses
import io
import os

import orbit
import tensorflow as tf
import tf_keras

from pipeline import files, report
from pipeline.data import order, reader
from pipeline.data.batch_shape import BatchShape
from pipeline.model import classifier
from pipeline.train import checkpoint, distribution
from pipeline.train import state as states
from pipeline.train.experiment import Experiment
from pipeline.train.journal import Journal
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.step import TrainingStep
from pipeline.train.trainer import Evaluator, Trainer


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run works with, made in the order in which the parts need each other."""

    strategy: tf.distribute.Strategy
    records: reader.RecordSet
    validation: reader.RecordSet
    budget: order.EpochBudget
    last_step: int
    state: states.TrainState


def assemble(experiment: Experiment, loop: Loop, target_device: str | None = None) -> Parts:
    """Opens the data and makes the state of step 0; everything that can be refused is refused here."""
    distribution.check_cpu_kernels()
    strategy = loop.create_strategy()
    divisors = {"hosts": distribution.hosts(strategy), "replicas": strategy.num_replicas_in_sync}
    experiment.data.batch_shape(**divisors, accumulation_steps=experiment.accumulation_steps)
    made = experiment.data.read_manifest()
    records, validation = experiment.data.training_records(made), experiment.data.validation_records(made)
    num_classes = experiment.classes(len(made.classes))
    budget = experiment.budget(records.examples, made.digest)
    with strategy.scope():
        state = states.create(experiment, num_classes, budget, target_device)
    last_step = min(budget.steps, experiment.max_steps or budget.steps)
    return Parts(strategy, records, validation, budget, last_step, state)


def train(context: RunContext, experiment: Experiment, loop: Loop = Loop()) -> dict:  # noqa: B008 (frozen)
    """Trains to the end of the epoch budget, going on from the newest checkpoint in `context.model_dir`.

    Returns:
      The summary that `run.json` holds.

    Raises:
      CheckpointError, ManifestError, ValueError: something does not fit; found before any work.
      DivergedError: the loss is not finite.
      LedgerError: an epoch did not consume each example exactly once.
      Preempted: the process was told to stop.
      PeerLostError: another process of the cluster is gone.
    """
    parts = assemble(experiment, loop)
    state = parts.state
    resumed = _start(context, experiment, parts)
    if state.step >= parts.last_step and (summary := report.find_summary(context.model_dir)):
        print(f"{context.model_dir} is finished: step {state.step} of {parts.last_step}.")
        return summary
    if distribution.is_chief():
        tf.io.gfile.makedirs(context.model_dir)
        files.write_atomically(os.path.join(context.model_dir, "config.gin"), context.config)

    jit_compile = distribution.uses_xla(parts.strategy) if loop.xla is None else loop.xla
    step = TrainingStep.of(experiment, state, jit_compile)
    trainer = Trainer(parts.strategy, experiment, parts.records, step)
    journal = Journal(context, experiment, loop, parts, resumed)
    evaluator = _evaluator(experiment, loop, parts, journal.after_evaluation_step)
    with journal, _quiet_orbit(), _explaining(parts):
        controller = orbit.Controller(
            global_step=state.optimizer.iterations,
            trainer=trainer,
            evaluator=evaluator,
            strategy=parts.strategy,
            steps_per_loop=journal.steps_to_next_look,
            train_actions=[journal.after_loop],
            summary_dir=os.path.join(context.model_dir, "tensorboard") if distribution.is_chief() else None,
        )
        for end in evaluation_steps(parts.budget, parts.last_step, loop.evaluate_every_epochs):
            if state.step < end:
                controller.train(end, checkpoint_at_completion=False)
            if state.step == end and not journal.has_evaluation(end):
                journal.save()
                journal.after_evaluation(controller.evaluate(evaluator.steps))
        summary = journal.finish()
    print(f"{context.model_dir}: step {summary['step']}, {report.describe(_validation(summary))}")
    return summary


def evaluate(context: RunContext, experiment: Experiment, loop: Loop = Loop()) -> dict:  # noqa: B008 (frozen)
    """Evaluates the newest checkpoint in `context.model_dir`; returns and prints its metrics."""
    parts = assemble(experiment, loop)
    saved = _restore_evaluated(context, parts)
    evaluator = _evaluator(experiment, loop, parts)
    controller = orbit.Controller(
        global_step=parts.state.optimizer.iterations, evaluator=evaluator, strategy=parts.strategy
    )
    with _quiet_orbit(), _explaining(parts):
        metrics = controller.evaluate(evaluator.steps)
    print(f"step {saved.step} of {context.model_dir}: {report.describe(metrics)}")
    return metrics


def trained_model(context: RunContext, experiment: Experiment) -> tf_keras.Model:
    """The model that evaluation uses, with the weights of the newest checkpoint in `context.model_dir`."""
    parts = assemble(experiment, Loop(strategy="one_device"), classifier.ANY_DEVICE)
    _restore_evaluated(context, parts)
    return parts.state.evaluated


def _restore_evaluated(context: RunContext, parts: Parts) -> checkpoint.Saved:
    saved = checkpoint.find(context.model_dir)
    with parts.strategy.scope():
        states.restore_evaluated(parts.state, saved)
        parts.state.optimizer.iterations.assign(saved.step)
    return saved


def _quiet_orbit():
    """Orbit prints every loop to stdout; the progress line and `metrics.jsonl` say the same."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _explaining(parts: Parts):
    """Raises what went wrong in reading as it was raised there, and says when another process is gone."""
    try:
        yield
    except tf.errors.OpError as error:
        for records in (parts.records, parts.validation):
            if records.error is not None:
                raise records.error from None
        if isinstance(parts.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise distribution.PeerLostError(
                f"Working together failed ({error.message.splitlines()[0]}): very likely another process is gone. "
                "Start the same command on every worker again; all go on from the last checkpoint."
            ) from error
        raise


def _validation(summary: dict) -> dict:
    return {name: value for name, value in summary.items() if name.startswith("validation_")}


def evaluation_steps(budget: order.EpochBudget, last_step: int, every_epochs: float | None) -> list[int]:
    """The steps after which to evaluate: every so many epochs, and the last."""
    if every_epochs is None:
        return [last_step]
    interval = max(1, round(every_epochs * budget.order.rows / budget.rows_per_step))
    return [*range(interval, last_step, interval), last_step]


def _evaluator(experiment: Experiment, loop: Loop, parts: Parts, after_step=lambda: None) -> Evaluator:
    batch = loop.eval_batch or experiment.data.batch
    BatchShape(batch, hosts=distribution.hosts(parts.strategy), replicas=parts.strategy.num_replicas_in_sync)
    return Evaluator(parts.strategy, experiment, parts.validation, parts.state.evaluated, batch, after_step)


def _start(context: RunContext, experiment: Experiment, parts: Parts) -> checkpoint.Saved | None:
    """Brings the state to where the run stands: its newest checkpoint, another run's weights, or random ones."""
    saved = checkpoint.latest(context.checkpoints)
    steps = distribution.of_all_processes(parts.strategy, saved.step if saved else -1)
    if len(steps) > 1:
        raise checkpoint.CheckpointError(
            f"The processes see different newest checkpoints in {context.checkpoints} (of steps {sorted(steps)}; -1 is "
            "none): --model_dir must be one folder that all of them share."
        )
    if saved is not None:
        _check_same_run(saved, context, experiment, parts)
        print(f"Going on from step {saved.step} of {parts.last_step} ({saved.path}).")
        return _restore(saved, parts)
    if experiment.initial_checkpoint:
        source = checkpoint.find(experiment.initial_checkpoint)
        same_classes = source.facts.get("classes") == parts.records.manifest.classes_digest
        with parts.strategy.scope():
            anew = states.initialize(parts.state, source, same_classes)
        print(f"Starting from the weights of {source.path}; initialised anew: {', '.join(anew) or 'nothing'}.")
    return None


def _restore(saved: checkpoint.Saved, parts: Parts) -> checkpoint.Saved:
    with parts.strategy.scope():
        checkpoint.restore(saved, parts.state.groups)
    return saved


def _check_same_run(saved: checkpoint.Saved, context: RunContext, experiment: Experiment, parts: Parts) -> None:
    """Raises a CheckpointError where configuration or data are not those that the checkpoint was saved under."""
    before, after = saved.facts["bindings"], context.bindings
    changes = [
        f"{name}: {before.get(name, 'not set')} then, {after.get(name, 'not set')} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if saved.facts["data_digest"] != parts.records.manifest.digest:
        changes.append(f"the records in {experiment.data.directory} are not the ones it was trained on")
    if changes and not context.force_resume:
        raise checkpoint.CheckpointError(
            f"{saved.path} was saved under another configuration:\n  "
            + "\n  ".join(changes)
            + "\nUse another --model_dir for a new run, or go on regardless with --force_resume."
        )
