"""Which runs a study needs next: a pure function of its settings and of what has finished."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence

from pipeline.model import cost, variants
from pipeline.study import StudyError
from pipeline.study.run_files import FINISHED, UNFINISHED, Run, Trial

TWO_TRIALS, GRID = "two_trials", "grid"
BEST, ALL = "best", "all"


@dataclasses.dataclass(frozen=True)
class Study:
    """A scaling study.

    Attributes:
      directory: where its runs go.
      variants: of the NFNet family.
      epochs: budgets of pre-training.
      learning_rates: the grid of a variant's and budget's first search, by factors of two.
      pretrain_file: gin file of pre-training; the study sets nfnet.variant, EPOCHS, LEARNING_RATE and SEED over it.
      finetune_files: gin file of each fine-tuning task; over it, nfnet.variant, INITIAL_CHECKPOINT and SEED are set.
      seeds: the first is used to find the learning rate, the others repeat the best.
      search: 'two_trials' starts from the neighbour's best learning rate and half of it, 'grid' from all of
        `learning_rates` in every cell; both continue where the best is on an edge of what was tried.
      max_extensions: how many learning rates may be added to those of the start.
      at_once: runs at the same time on this machine.
      finetune: 'best' fine-tunes the best learning rate of each variant and budget, 'all' every pre-training.
      params: gin bindings over every file.
    """

    directory: str
    variants: Sequence[str]
    epochs: Sequence[float]
    learning_rates: Sequence[float]
    pretrain_file: str
    finetune_files: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    search: str = TWO_TRIALS
    max_extensions: int = 3
    at_once: int = 1
    finetune: str = BEST
    params: Sequence[str] = ()

    def __post_init__(self):
        for name in ("variants", "epochs", "learning_rates", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise StudyError(f"Study.{name} must hold distinct values, at least one; found {values}.")
        for variant in self.variants:
            variants.get(variant)  # raises for a variant that does not exist
        if min(self.epochs) <= 0 or min(self.learning_rates) <= 0:
            raise StudyError("Study.epochs and Study.learning_rates must be positive.")
        if self.at_once < 1:
            raise StudyError(f"Study.at_once is {self.at_once}; expected 1 or more runs.")
        rates = sorted(self.learning_rates)
        if any(not math.isclose(2 * low, high) for low, high in itertools.pairwise(rates)):
            raise StudyError(f"Study.learning_rates must be spaced by factors of two, found {rates}.")
        for name, options in (("search", (TWO_TRIALS, GRID)), ("finetune", (BEST, ALL))):
            if getattr(self, name) not in options:
                raise StudyError(f"Study.{name} is {getattr(self, name)!r}; expected one of {options}.")
        if len(set(self.tasks)) != len(self.finetune_files):
            raise StudyError(f"Study.finetune_files must have distinct names, found {self.tasks}.")

    @property
    def tasks(self) -> dict[str, str]:
        """Name of each fine-tuning task to its gin file."""
        return {os.path.splitext(os.path.basename(file))[0]: file for file in self.finetune_files}

    @property
    def grid(self) -> list[tuple[str, float]]:
        """All (variant, epochs), small models and budgets first."""
        variants = sorted(self.variants, key=lambda variant: cost.multiply_adds(variant, 224, 1))
        return [(variant, epochs) for variant in variants for epochs in sorted(self.epochs)]

    def neighbour(self, variant: str, epochs: float) -> tuple[str, float] | None:
        """The next smaller budget of the variant; for its smallest budget, that of the next smaller variant."""
        budgets, place = len(self.epochs), self.grid.index((variant, epochs))
        if place % budgets:
            return self.grid[place - 1]
        return self.grid[place - budgets] if place else None


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
            reasons[Trial(*cell, rate, study.seeds[0])] = reason
        if search.best is not None:
            reasons |= {Trial(*cell, search.best, seed): "another seed" for seed in study.seeds[1:]}
            reasons |= {trial: "fine-tuning" for trial in _finetunings(study, Trial(*cell, search.best), done)}
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
        states[cell] = _search(study, start, tried)
    return states


def remaining(study: Study, runs: Sequence[Run]) -> Iterator[Trial]:
    """The trials to come as far as can be foreseen: those that can run now, and the fewest of each later search."""
    yield from next_trials(study, runs)
    states = searches(study, runs)
    for cell in study.grid:
        state = states.get(cell)
        if state is not None and state.best is not None:
            continue
        if state is None:
            first = study.learning_rates[0]  # stands for the neighbour's best, with the rates below and above it
            trials = (first, first / 2, first * 2)[: 2 + study.max_extensions]
            rates = study.learning_rates if study.search == GRID else trials
            yield from (Trial(*cell, rate, study.seeds[0]) for rate in rates)
        rate = study.learning_rates[0]
        yield from (Trial(*cell, rate, seed) for seed in study.seeds[1:])
        yield from (Trial(*cell, rate, study.seeds[0], task) for task in study.tasks)


def _done(runs: Sequence[Run]) -> dict[Trial, Run]:
    return {run.trial: run for run in runs if run.status != UNFINISHED}


def _search(study: Study, start: float | None, tried: Mapping[float, float]) -> Search:
    rates = sorted(study.learning_rates, reverse=True) if start is None else [start, start / 2]
    why = "the grid" if start is None else f"the neighbour's best learning rate is {start:g}"
    if missing := [rate for rate in rates if not any(math.isclose(rate, other, rel_tol=1e-6) for other in tried)]:
        return Search(tuple((rate, why) for rate in missing))
    best, lowest, highest = min(tried, key=lambda rate: tried[rate]), min(tried), max(tried)
    diverged = math.isinf(tried[best])
    may_extend = len(tried) < len(rates) + study.max_extensions
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


def _finetunings(study: Study, best: Trial, done: Mapping[Trial, Run]) -> Iterator[Trial]:
    best = dataclasses.replace(best, seed=study.seeds[0])
    for trial, run in done.items():
        same = (trial.variant, trial.epochs, trial.task) == (best.variant, best.epochs, "")
        if same and run.status == FINISHED and (study.finetune == ALL or trial == best):
            yield from (dataclasses.replace(trial, task=task) for task in study.tasks)
