"""A family of a study: models of several sizes with a recipe of their own."""

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence

from pipeline.model import variants
from pipeline.study import StudyError


@dataclasses.dataclass(frozen=True)
class Family:
    """Models of several sizes, and how they are trained.

    Attributes:
      name: as tables and figures show it.
      models: smallest first. Each is the name of a variant of NFNet, or a gin file that is read after the recipe's, as
        those of `gin/model/` are; its name is the model's.
      learning_rates: the grid of the first search, by factors of two.
      pretrain_file: gin file of pre-training; the study sets the model, EPOCHS, LEARNING_RATE and SEED over it.
      finetune_files: gin file of each fine-tuning task, whose name is the task's; over it, the study sets the model,
        INITIAL_CHECKPOINT and SEED.
      epochs: budgets of pre-training, where they are not the study's.
    """

    name: str
    models: Sequence[str]
    learning_rates: Sequence[float]
    pretrain_file: str
    finetune_files: Sequence[str] = ()
    epochs: Sequence[float] = ()

    def __post_init__(self):
        check_distinct(f"The models of {self.name}", self.variants)
        check_distinct(f"The learning_rates of {self.name}", self.learning_rates)
        if not (self.name and self.pretrain_file):
            raise StudyError("Each family needs a name and a pretrain_file.")
        for model in self.models:
            if not _is_file(model):
                variants.get(model)  # raises for a variant that does not exist
        rates = sorted(self.learning_rates)
        if rates[0] <= 0:
            raise StudyError(f"The learning_rates of {self.name} must be positive, found {rates}.")
        if any(not math.isclose(2 * low, high) for low, high in itertools.pairwise(rates)):
            raise StudyError(f"The learning_rates of {self.name} must be spaced by factors of two, found {rates}.")
        if len(self.tasks) != len(self.finetune_files):
            raise StudyError(f"The finetune_files of {self.name} must have distinct names, found {self.tasks}.")

    @property
    def variants(self) -> list[str]:
        """Names of the models, smallest first."""
        return [_stem(model) if _is_file(model) else model for model in self.models]

    @property
    def tasks(self) -> dict[str, str]:
        """Name of each fine-tuning task to its gin file."""
        return {_stem(file): file for file in self.finetune_files}

    def configuration(self, variant: str, task: str = "") -> tuple[list[str], list[str]]:
        """The gin files of a model's pre-training, or of its fine-tuning on a task, and the bindings over them."""
        file = self.tasks[task] if task else self.pretrain_file
        model = self.models[self.variants.index(variant)]
        return ([file, model], []) if _is_file(model) else ([file], [f'nfnet.variant="{model}"'])


def check_distinct(name: str, values: Sequence[object]) -> None:
    """Raises a StudyError where there are no `values`, or one of them is there twice; its message calls them `name`."""
    if not values or len(set(values)) != len(values):
        raise StudyError(f"{name} must hold distinct values, at least one; found {tuple(values)}.")


def _is_file(model: str) -> bool:
    return model.endswith(".gin")


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]
