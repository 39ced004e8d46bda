"""Which runs belong to one study: those whose records and settings differ in nothing but what the study varies."""

from collections.abc import Iterable

from pipeline.study import StudyError
from pipeline.study.run_files import Run

# Bindings that a study sets for each run. Records are compared by content and not by folder.
VARIED = frozenset({"nfnet.variant", "Experiment.seed", "Experiment.initial_checkpoint", "Data.directory"})
VARIED_IN_PRETRAINING = VARIED | {"Experiment.epochs", "cosine.peak", "linear.peak", "constant.peak"}


def check_same(runs: Iterable[Run]) -> None:
    """Checks that all pre-trainings share records and recipe, and so do all fine-tunings of a task.

    Raises:
      StudyError: names two runs that differ, and in what.
    """
    first: dict[str, Run] = {}
    first_with_data: dict[str, Run] = {}
    for run in runs:
        task, other = run.trial.task, first.setdefault(run.trial.task, run)
        if lines := differences(other, run):
            raise StudyError(_mixed(other, run, "recipe:\n  " + "\n  ".join(lines)))
        if "data_digest" in run.summary:
            other = first_with_data.setdefault(task, run)
            if run.summary["data_digest"] != other.summary["data_digest"]:
                raise StudyError(_mixed(other, run, "training or evaluation records: their data_digest differs."))


def differences(first: Run, second: Run) -> list[str]:
    """How the recipes of two runs of one task differ, a line for each binding."""
    varied = VARIED if first.trial.task else VARIED_IN_PRETRAINING
    names = sorted((first.bindings.keys() | second.bindings.keys()) - varied)
    values = ((name, first.bindings.get(name, "not set"), second.bindings.get(name, "not set")) for name in names)
    return [f"{name}: {one} in the first, {other} in the second" for name, one, other in values if one != other]


def _mixed(first: Run, second: Run, what: str) -> str:
    return (
        f"{first.folder} and {second.folder} do not belong to one study; they differ in {what}\n"
        "Keep each recipe and each data set in a study of its own: set another Study.directory, or move one run away."
    )
