"""Which runs belong to one study: those whose records and settings differ in nothing but what the study varies."""

from collections.abc import Iterable

from pipeline.study import StudyError
from pipeline.study.run_files import Run

# Bindings that a study sets for each run. Records are compared by content and not by folder.
VARIED = frozenset({"Experiment.seed", "Experiment.initial_checkpoint", "Data.directory"})
VARIED_IN_PRETRAINING = VARIED | {"Experiment.epochs", "cosine.peak", "linear.peak", "constant.peak"}
# Bindings that may differ between the models of a family, but not between two runs of one.
OF_MODEL = frozenset(
    {"nfnet.variant", "garden.settings", "hybrid.variant", "hybrid.stages", "hybrid.hidden_size", "hybrid.transformer"}
)
# Bindings that decide what a loss measures: the same in all families, which have recipes of their own beside that.
OF_LOSS = frozenset({"Experiment.loss", "Experiment.num_classes"})


def check_same(runs: Iterable[Run]) -> None:
    """Checks that the runs of a study may be compared.

    The pre-trainings of a family share a recipe, and so do its fine-tunings on a task; a model is the same in all of
    its runs; and all families share the records and the loss.

    Raises:
      StudyError: names two runs that differ, and in what.
    """
    first: dict[tuple, Run] = {}

    def check(kind: tuple, run: Run, names: Iterable[str] | None = None) -> None:
        other = first.setdefault(kind, run)
        if lines := differences(other, run, names):
            raise StudyError(_mixed(other, run, "recipe:\n  " + "\n  ".join(lines)))

    for run in runs:
        trial = run.trial
        check((trial.task, trial.family), run)
        check((trial.task, trial.family, trial.variant), run, OF_MODEL)
        check((trial.task,), run, OF_LOSS)
        if "data_digest" in run.summary:
            other = first.setdefault((trial.task, "data"), run)
            if run.summary["data_digest"] != other.summary["data_digest"]:
                raise StudyError(_mixed(other, run, "training or evaluation records: their data_digest differs."))


def differences(first: Run, second: Run, names: Iterable[str] | None = None) -> list[str]:
    """How the recipes of two runs of one task differ, a line for each binding; of `names` alone where given."""
    ones, others = first.bindings, second.bindings
    if names is None:
        names = (ones.keys() | others.keys()) - (VARIED if first.trial.task else VARIED_IN_PRETRAINING) - OF_MODEL
    values = ((name, ones.get(name, "not set"), others.get(name, "not set")) for name in sorted(names))
    return [f"{name}: {one} in the first, {other} in the second" for name, one, other in values if one != other]


def _mixed(first: Run, second: Run, what: str) -> str:
    return (
        f"{first.folder} and {second.folder} do not belong to one study; they differ in {what}\n"
        "Keep each recipe and each data set in a study of its own: set another Study.directory, or move one run away."
    )
