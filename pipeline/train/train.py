"""Training, from the first step to the summary."""

import os
from collections.abc import Sequence

import orbit

from pipeline import files, report
from pipeline.data import record, statistics
from pipeline.data.manifest import ManifestError
from pipeline.data.order import EpochBudget
from pipeline.evaluation import guessing, run_page
from pipeline.objective import SOFTMAX
from pipeline.train import actions, components, distribution, starting_point, tensorboard
from pipeline.train.controller import explained_errors, inner_loop, quiet_orbit
from pipeline.train.evaluator import Evaluator
from pipeline.train.experiment import Experiment
from pipeline.train.preemption import Preemption
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.step import TrainingStep
from pipeline.train.summary import summarize
from pipeline.train.tensorboard import Summaries
from pipeline.train.trainer import Trainer


def train(context: RunContext, experiment: Experiment, loop: Loop = Loop()) -> dict:  # noqa: B008 (frozen)
    """Trains to the end of the epoch budget, continuing from the newest checkpoint in `context.model_dir`.

    Returns:
      The summary that `run.json` holds.

    Raises:
      CheckpointError, ManifestError, ValueError: something does not fit; found before any work.
      DivergedError: the loss is not finite.
      LedgerError: an epoch did not consume each example exactly once.
      Preempted: the process was told to stop.
      PeerLostError: another process of the cluster is gone.
    """
    run = components.assemble(context, experiment, loop)
    strategy, state = run.strategy, run.state
    resumed = starting_point.restore(context, experiment, run)
    ended = state.step >= run.last_step or stops_early(experiment, run, report.read_metrics(context.model_dir))
    if ended and (summary := report.find_summary(context.model_dir)):
        print(f"{context.model_dir} is finished: step {state.step} of {run.last_step}.")
        return summary
    if distribution.is_chief():
        files.make_folder(context.model_dir)
        files.write_atomically(os.path.join(context.model_dir, report.CONFIG_FILE), context.config)

    step = TrainingStep.of(experiment, state, jit_compile=loop.uses_xla(strategy))
    trainer = Trainer(experiment, run, step, seconds=resumed.facts["seconds"] if resumed else 0.0)

    def facts() -> dict:
        manifest = run.records.manifest
        return {
            "bindings": context.bindings,
            "data_digest": manifest.digest,
            "classes": manifest.classes_digest,
            "class_names": manifest.classes,
            "variant": state.variant,
            "seconds": trainer.seconds,
        }

    metrics = actions.MetricsLog(context.model_dir, run)
    progress = actions.ProgressLine(run)
    ledger = actions.LedgerCheck(run, progress.say, loop.on_ledger_mismatch)
    checkpoints = actions.Checkpoints(context.checkpoints, loop, run, facts, resumed.step if resumed else None)
    preemption = Preemption(run, checkpoints)
    best = [actions.BestCheckpoint(context.model_dir, checkpoints, metrics)] if loop.evaluate_every_epochs else []
    evaluator = Evaluator(strategy, experiment, run.validation, state.evaluated, loop.eval_batch, after_step=preemption)
    scalars = os.path.join(context.model_dir, tensorboard.FOLDER) if distribution.is_chief() else None
    with preemption, progress, quiet_orbit(), explained_errors(strategy):
        controller = orbit.Controller(
            global_step=state.optimizer.iterations,
            trainer=trainer,
            evaluator=evaluator,
            strategy=strategy,
            steps_per_loop=inner_loop(loop, run, trainer),
            train_actions=[metrics, progress, ledger, checkpoints, preemption],
            eval_actions=[*best, metrics.after_evaluation, progress.after_evaluation],
            summary_manager=Summaries(scalars, state.optimizer.iterations),
        )
        for end in evaluation_steps(run.budget, run.last_step, loop.evaluate_every_epochs):
            if state.step < end:
                controller.train(end, checkpoint_at_completion=False)
            if state.step == end and not metrics.has_evaluation(end):
                checkpoints.save()
                controller.evaluate(evaluator.steps)
            if end < run.last_step and stops_early(experiment, run, metrics.evaluations):
                progress.say(f"No lower validation loss for {experiment.patience:g} epochs: stopped after step {end}.")
                break
        ledger()
        checkpoints.save()
        checkpoints.prune()

    last_evaluation = metrics.evaluations[-1] if metrics.evaluations else {}
    summary = summarize(context, experiment, run, last_evaluation, trainer.seconds, run.damaged_records())
    if distribution.is_chief():
        report.write_summary(context.model_dir, summary)
        run_page.write_or_warn(context.model_dir, experiment.data.directory)
    print(f"{context.model_dir}: step {summary['step']}, {report.describe(actions.validation_metrics(summary))}")
    if warning := _warning(experiment, run, metrics.evaluations):
        print(f"\n{warning}\n")
    return summary


def _warning(experiment: Experiment, run: components.RunComponents, evaluations: Sequence[dict]) -> str:
    """A warning where the lowest validation loss is not below that of guessing; '' where it is, or none is known."""
    several_labels = run.validation.manifest.label_kind == record.MULTI_LABEL
    if experiment.objective is not SOFTMAX or several_labels or not evaluations:
        return ""
    try:
        counts = statistics.read(experiment.data.directory).images_per_class[experiment.data.validation_split]
    except ManifestError:  # records of an older version have no counts
        return ""
    return guessing.warning(min(line[actions.BEST_METRIC] for line in evaluations), counts)


def stops_early(experiment: Experiment, run: components.RunComponents, metrics: Sequence[dict]) -> bool:
    """Whether the validation loss, in lines of `metrics.jsonl`, has not fallen for `Experiment.patience` epochs."""
    own = [line for line in metrics if actions.BEST_METRIC in line and report.SPLIT not in line]
    losses = {line["step"]: line[actions.BEST_METRIC] for line in own}
    if experiment.patience is None or not losses:
        return False
    best = min(losses, key=losses.__getitem__)
    return run.budget.epoch_of_step(max(losses)) - run.budget.epoch_of_step(best) >= experiment.patience


def evaluation_steps(budget: EpochBudget, last_step: int, every_epochs: float | None) -> list[int]:
    """The steps after which to evaluate: every so many epochs, and the last."""
    if every_epochs is None:
        return [last_step]
    interval = max(1, round(every_epochs * budget.order.rows / budget.rows_per_step))
    return [*range(interval, last_step, interval), last_step]
