"""Where a run starts: at its newest checkpoint, at the weights of another run, or at random ones."""

from pipeline.train import checkpoint, distribution
from pipeline.train.checkpoint import CheckpointError, Saved
from pipeline.train.components import RunComponents
from pipeline.train.experiment import Experiment
from pipeline.train.run_config import RunContext
from pipeline.train.state import initialize


def restore(context: RunContext, experiment: Experiment, run: RunComponents) -> Saved | None:
    """Brings the state of `run` to where it starts.

    Returns:
      The run's checkpoint that it continues from, None where it starts at step 0.

    Raises:
      CheckpointError: the checkpoint is of another run or another model; says how it differs.
    """
    saved = _newest(context, run)
    if saved is not None:
        _check_same_run(saved, context, experiment, run)
        with run.strategy.scope():
            checkpoint.restore(saved, run.state.groups)
        print(f"Continuing from step {saved.step} of {run.last_step} ({saved.path}).")
    elif experiment.initial_checkpoint:
        source = checkpoint.find(experiment.initial_checkpoint)
        same_classes = source.facts.get("classes") == run.records.manifest.classes_digest
        with run.strategy.scope():
            random = initialize(run.state, source, same_classes)
        print(f"Starting from the weights of {source.path}; initialized at random: {', '.join(random) or 'nothing'}.")
    return saved


def _newest(context: RunContext, run: RunComponents) -> Saved | None:
    """The newest whole checkpoint; the chief verifies its files, and all other processes open the same one."""
    saved = checkpoint.latest(context.checkpoints) if distribution.is_chief() else None
    step = max(distribution.of_all_processes(run.strategy, saved.step if saved else -1))
    missing = 0
    if not distribution.is_chief() and step >= 0:
        try:
            saved = checkpoint.open_checkpoint(checkpoint.folder(context.checkpoints, step), verify=False)
        except CheckpointError:
            missing = 1
    if 1 in distribution.of_all_processes(run.strategy, missing):
        raise CheckpointError(
            f"The chief found a checkpoint of step {step} in {context.checkpoints}, which not every process sees: "
            "--model_dir must be one folder that all of them share."
        )
    return saved


def _check_same_run(saved: Saved, context: RunContext, experiment: Experiment, run: RunComponents) -> None:
    """Raises a CheckpointError where configuration or data are not those that the checkpoint was saved under."""
    before, after = saved.facts["bindings"], context.bindings
    changes = [
        f"{name}: {before.get(name, 'not set')} then, {after.get(name, 'not set')} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if saved.facts["data_digest"] != run.records.manifest.digest:
        changes.append(f"the records in {experiment.data.directory} are not the ones it was trained on")
    if changes and not context.force_resume:
        raise CheckpointError(
            f"{saved.path} was saved under another configuration:\n  "
            + "\n  ".join(changes)
            + "\nUse another --model_dir for a new run, or continue regardless with --force_resume."
        )
