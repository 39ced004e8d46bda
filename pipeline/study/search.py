"""Which runs a study needs next: a pure function of its settings and of what has finished."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

from pipeline.model import cost
from pipeline.study import StudyError
from pipeline.study.family import Family, check_distinct
from pipeline.study.run_files import FINISHED, NFNET, UNFINISHED, Run, Trial

TWO_TRIALS, GRID = "two_trials", "grid"
BEST, ALL = "best", "all"


@dataclasses.dataclass(frozen=True)
class Study:
    """A scaling study: of NFNets, which `variants` and the settings after it describe, of `families`, or of both.

    Attributes:
      directory: where its runs go.
      epochs: budgets of pre-training, of every family that has none of its own.
      variants: of NFNet, in any order.
      learning_rates, pretrain_file, finetune_files: of `variants`; see `Family`.
      families: further ones, each with a recipe of its own; the models of all have distinct names.
      seeds: the first is used to find the learning rate, the others repeat the best.
      search: 'two_trials' starts from the neighbour's best learning rate and half of it, 'grid' from all of
        `learning_rates` in every cell; both continue where the best is on an edge of what was tried.
      max_extensions: how many learning rates may be added to those of the start.
      at_once: runs at the same time on this machine.
      finetune: 'best' fine-tunes the best learning rate of each model and budget, 'all' every pre-training.
      params: gin bindings over every file.
    """

    directory: str
    epochs: Sequence[float] = ()
    variants: Sequence[str] = ()
    learning_rates: Sequence[float] = ()
    pretrain_file: str = ""
    finetune_files: Sequence[str] = ()
    families: Sequence[Family] = ()
    seeds: Sequence[int] = (0,)
    search: str = TWO_TRIALS
    max_extensions: int = 3
    at_once: int = 1
    finetune: str = BEST
    params: Sequence[str] = ()

    def __post_init__(self):
        check_distinct("Study.seeds", self.seeds)
        if self.at_once < 1:
            raise StudyError(f"Study.at_once is {self.at_once}; expected 1 or more runs.")
        for name, options in (("search", (TWO_TRIALS, GRID)), ("finetune", (BEST, ALL))):
            if getattr(self, name) not in options:
                raise StudyError(f"Study.{name} is {getattr(self, name)!r}; expected one of {options}.")
        if not self.members:
            raise StudyError("Set Study.variants, learning_rates and pretrain_file for NFNets, or Study.families.")
        if (self.learning_rates or self.pretrain_file or self.finetune_files) and not self.variants:
            raise StudyError(
                "Study.learning_rates, pretrain_file and finetune_files are those of Study.variants, which is not set: "
                "set it, or set them for each of Study.families."
            )
        for each in self.members:
            budgets = self.budgets(each)
            name = f"Family.epochs of {each.name}" if each.epochs else "Study.epochs"
            check_distinct(name, budgets)
            if budgets[0] <= 0:
                raise StudyError(f"{name} must be positive, found {budgets}.")
        if self.epochs and all(each.epochs for each in self.members):
            raise StudyError("Study.epochs is not used, since every family has budgets of its own: remove it.")
        models = [variant for each in self.members for variant in each.variants]
        for values in ([each.name for each in self.members], models):
            if len(set(values)) != len(values):
                raise StudyError(f"The families of a study and their models must have distinct names, found {values}.")

    @functools.cached_property
    def members(self) -> tuple[Family, ...]:
        """The study's families, one or several."""
        if not self.variants:
            return tuple(self.families)
        models = sorted(self.variants, key=lambda name: cost.multiply_adds(name, 224, 1))
        return (Family(NFNET, models, self.learning_rates, self.pretrain_file, self.finetune_files), *self.families)

    def family(self, variant: str) -> Family:
        """The family that has a model."""
        return next(each for each in self.members if variant in each.variants)

    def budgets(self, family: Family) -> list[float]:
        """The epoch budgets of a family, smallest first."""
        return sorted(family.epochs or self.epochs)

    @property
    def grid(self) -> list[tuple[str, float]]:
        """All (variant, epochs) by family, small models and budgets first."""
        return [
            (variant, epochs) for each in self.members for variant in each.variants for epochs in self.budgets(each)
        ]

    def neighbour(self, variant: str, epochs: float) -> tuple[str, float] | None:
        """The next smaller budget of the model; for its smallest budget, that of the family's next smaller model."""
        family = self.family(variant)
        budgets, models = self.budgets(family), family.variants
        if smaller := budgets[: budgets.index(epochs)]:
            return variant, smaller[-1]
        smaller_models = models[: models.index(variant)]
        return (smaller_models[-1], epochs) if smaller_models else None

    def trial(self, cell: tuple[str, float], learning_rate: float, seed: int, task: str = "") -> Trial:
        """The trial of a (variant, epochs)."""
        return Trial(*cell, learning_rate, seed, task, self.family(cell[0]).name)


@dataclasses.dataclass(frozen=True)
class Search:
    """State of the search for the learning rate of one variant and budget.

    Attributes:
      missing: learning rates to try next, with the reason.
      best: the best learning rate, None while the search continues or where every rate diverged.
      note: a warning about the best one, or ''.
    """

    missing: tuple[tuple[float, str], ...] = ()
    best: float | None = None
    note: str = ""


def next_trials(study: Study, runs: Sequence[Run]) -> dict[Trial, str]:
    """The trials that can run now, each independent of the others, and why; empty when the study is done."""
    done = _done(runs)
    reasons: dict[Trial, str] = {}
    for cell, search in searches(study, runs).items():
        for rate, reason in search.missing:
            reasons[study.trial(cell, rate, study.seeds[0])] = reason
        if search.best is not None:
            reasons |= {study.trial(cell, search.best, seed): "another seed" for seed in study.seeds[1:]}
            reasons |= {trial: "fine-tuning" for trial in _finetunings(study, cell, search.best, done)}
    return {trial: reason for trial, reason in reasons.items() if trial not in done}


def searches(study: Study, runs: Sequence[Run]) -> dict[tuple[str, float], Search]:
    """The state of every learning-rate search that can start, by (variant, epochs)."""
    done = _done(runs)
    states: dict[tuple[str, float], Search] = {}
    for cell in study.grid:
        neighbour = study.neighbour(*cell)
        start = None
        if study.search == TWO_TRIALS and neighbour is not None:
            if neighbour not in states or states[neighbour].missing:
                continue  # the neighbour's search is not done
            start = states[neighbour].best
        tried = {
            trial.learning_rate: run.loss
            for trial, run in done.items()
            if (trial.variant, trial.epochs, trial.seed, trial.task) == (*cell, study.seeds[0], "")
        }
        states[cell] = _search(study.family(cell[0]).learning_rates, start, tried, study.max_extensions)
    return states


def remaining(study: Study, runs: Sequence[Run]) -> Iterator[Trial]:
    """The trials to come as far as can be foreseen: those that can run now, and the fewest of each later search."""
    yield from next_trials(study, runs)
    states = searches(study, runs)
    for cell in study.grid:
        state = states.get(cell)
        if state is not None and state.best is not None:
            continue
        rates = study.family(cell[0]).learning_rates
        if state is None:
            first = rates[0]  # stands for the neighbour's best, with the rates below and above it
            trials = (first, first / 2, first * 2)[: 2 + study.max_extensions]
            tried = rates if study.search == GRID else trials
            yield from (study.trial(cell, rate, study.seeds[0]) for rate in tried)
        yield from (study.trial(cell, rates[0], seed) for seed in study.seeds[1:])
        yield from (study.trial(cell, rates[0], study.seeds[0], task) for task in study.family(cell[0]).tasks)


def _done(runs: Sequence[Run]) -> dict[Trial, Run]:
    return {run.trial: run for run in runs if run.status != UNFINISHED}


def _search(grid: Sequence[float], start: float | None, tried: Mapping[float, float], max_extensions: int) -> Search:
    rates = sorted(grid, reverse=True) if start is None else [start, start / 2]
    why = "the grid" if start is None else f"the neighbour's best learning rate is {start:g}"
    if missing := [rate for rate in rates if not any(math.isclose(rate, other, rel_tol=1e-6) for other in tried)]:
        return Search(tuple((rate, why) for rate in missing))
    best, lowest, highest = min(tried, key=lambda rate: tried[rate]), min(tried), max(tried)
    diverged = math.isinf(tried[best])
    may_extend = len(tried) < len(rates) + max_extensions
    if not may_extend and diverged:
        return Search(note=f"every learning rate from {lowest:g} to {highest:g} diverged")
    if diverged:
        return Search(((lowest / 2, "all diverged: the grid is extended"),))
    for end, edge, beyond in (("lower", lowest, lowest / 2), ("upper", highest, highest * 2)):
        if best == edge and may_extend:
            return Search(((beyond, f"the best, {best:g}, is on the {end} edge: the grid is extended"),))
        if best == edge:
            return Search(best=best, note=f"the best learning rate, {best:g}, is still on the {end} edge")
    return Search(best=best)


def _finetunings(study: Study, cell: tuple[str, float], best: float, done: Mapping[Trial, Run]) -> Iterator[Trial]:
    chosen = study.trial(cell, best, study.seeds[0])
    for trial, run in done.items():
        same = (trial.variant, trial.epochs, trial.task) == (*cell, "")
        if same and run.status == FINISHED and (study.finetune == ALL or trial == chosen):
            yield from (dataclasses.replace(trial, task=task) for task in study.family(cell[0]).tasks)
