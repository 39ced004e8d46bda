"""The results of a study: its frontier, the laws fitted to it, and how well smaller runs predict the largest."""

import dataclasses
import json
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from pipeline import files
from pipeline.study import StudyError, law, recipe
from pipeline.study.run_files import DIVERGED, FINISHED, UNFINISHED, UNITS, Run

Result = TypeVar("Result")
_BENT = (
    f"The frontier bends up to its end: no {law.MIN_POINTS_BEND} of its last points follow a straight line, so none "
    "would hold beyond them. Extrapolate by the law with a floor where there is one, or add larger budgets."
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A variant with an epoch budget, at its best learning rate.

    Attributes:
      loss: held-out loss, the geometric mean over seeds.
      runs: the finished runs at that learning rate, one a seed.
      tried: all learning rates that were tried.
    """

    variant: str
    epochs: float
    learning_rate: float
    loss: float
    runs: tuple[Run, ...]
    tried: tuple[float, ...]

    @property
    def edge(self) -> str:
        """'lower' or 'upper' where the best learning rate is the least or largest of those tried, else ''."""
        if self.learning_rate == min(self.tried):
            return "lower"
        return "upper" if self.learning_rate == max(self.tried) else ""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The laws of one family of a study.

    Attributes:
      family: its name.
      unit: of compute.
      cells: every variant and epoch budget at its best learning rate, by rising compute.
      compute: of each cell, float64 [cells].
      frontier: indices of the cells that no cheaper cell beats.
      bend: of the frontier on log-log axes; None where it has too few points to tell.
      trusted: indices of the longest end of the frontier that shows no bend; empty if all do.
      line: log-log line of loss against compute on `trusted`, or why there is none.
      saturating: L = E + A C^-a, or why there is none; on the whole frontier, unless that bends downwards.
      growth: exponents of the best size and epoch budget against compute, or why there are none.
      held_out: law's name to the largest run beside its prediction from the smaller ones, or why there is none.
      diverged, unfinished: how many pre-trainings were left out.
    """

    family: str
    unit: str
    cells: tuple[Cell, ...]
    compute: np.ndarray
    frontier: np.ndarray
    bend: law.Bend | None
    trusted: np.ndarray
    line: law.Line | str
    saturating: law.Saturating | str
    growth: law.Growth | str
    held_out: dict[str, law.HeldOut | str]
    diverged: int
    unfinished: int

    @property
    def loss(self) -> np.ndarray:
        """Held-out loss of each cell, float64 [cells]."""
        return np.array([cell.loss for cell in self.cells])

    @property
    def decades(self) -> float:
        """How far the frontier's compute reaches, in powers of ten."""
        return self._reach(self.frontier)

    @property
    def trusted_decades(self) -> float:
        """How far the compute of `trusted` reaches, in powers of ten."""
        return self._reach(self.trusted)

    @property
    def models(self) -> int:
        """How many models are on the frontier."""
        return len({self.cells[i].variant for i in self.frontier})

    @property
    def laws(self) -> dict[str, law.Law]:
        """The laws that could be fitted, by name."""
        both = {"line": self.line, "with floor": self.saturating}
        return {name: fitted for name, fitted in both.items() if not isinstance(fitted, str)}

    def _reach(self, indices: np.ndarray) -> float:
        return float(np.ptp(np.log10(self.compute[indices]))) if len(indices) else 0.0


@dataclasses.dataclass(frozen=True)
class StudyAnalysis:
    """The laws of all families of a study.

    Attributes:
      families: those that can be fitted, by name.
      left_out: name of every other family to the reason.
    """

    families: dict[str, Analysis]
    left_out: dict[str, str]

    def choose(self, family: str | None) -> Analysis:
        """The analysis of a family by its name, or of the only one where None; a StudyError where there is no such."""
        if family in self.left_out:
            raise StudyError(f"{family} cannot be fitted: {self.left_out[family]}")
        names = [*self.families, *self.left_out]
        if (family is None and len(names) > 1) or (family is not None and family not in names):
            raise StudyError(f"The study has the families {', '.join(names)}: choose one with --family=NAME.")
        return self.families[family or names[0]]


def analyse_families(runs: Sequence[Run], unit: str) -> StudyAnalysis:
    """Fits the laws of each family of a study.

    Raises:
      StudyError: data or recipes are mixed, or no family can be fitted; frontiers of one model are not enough.
    """
    recipe.check_same(run for run in runs if run.status != UNFINISHED)
    names = list(dict.fromkeys(run.trial.family for run in sorted(runs, key=lambda run: run.trial.family)))
    results = {name: _or_reason(analyse, [run for run in runs if run.trial.family == name], unit) for name in names}
    families = {name: result for name, result in results.items() if isinstance(result, Analysis)}
    left_out = {name: result for name, result in results.items() if isinstance(result, str)}
    if all(each.models == 1 for each in families.values()):
        why = {name: left_out.get(name) or str(families[name].line) for name in names}
        reasons = [f"{name}: {reason}" for name, reason in why.items()] if len(names) > 1 else why.values()
        raise StudyError("\n".join([*reasons, "`scaling_study.py run` prints the losses of a study that is finished."]))
    return StudyAnalysis(families, left_out)


def analyse(runs: Sequence[Run], unit: str) -> Analysis:
    """Fits the laws of the runs of one family.

    Raises:
      StudyError: data or recipes are mixed, too few runs are finished, or a run's cost in `unit` is unknown.
    """
    recipe.check_same(run for run in runs if run.status != UNFINISHED)
    statuses = [run.status for run in runs if not run.trial.task]
    diverged, unfinished = statuses.count(DIVERGED), statuses.count(UNFINISHED)
    pairs = [(float(np.mean([run.compute(unit) for run in cell.runs])), cell) for cell in best_cells(runs)]
    pairs.sort(key=lambda pair: pair[0])
    compute, cells = np.array([c for c, _ in pairs]), tuple(cell for _, cell in pairs)
    left_out = f"{diverged} diverged and {unfinished} are unfinished"
    if len(cells) < law.MIN_POINTS_LINE:
        raise StudyError(
            f"A law needs at least {law.MIN_POINTS_LINE} pairs of model and epoch budget with a finished run, found "
            f"{len(cells)} ({left_out}): run more of the study."
        )
    loss = [cell.loss for cell in cells]
    frontier = law.frontier(compute, loss)
    if len(frontier) < law.MIN_POINTS_LINE:
        raise StudyError(
            f"The compute-optimal frontier holds {len(frontier)} of {len(cells)} points ({left_out}), a law needs "
            f"{law.MIN_POINTS_LINE}: add models and epoch budgets in between, or other learning rates."
        )
    x, y = compute[frontier], np.array(loss)[frontier]
    bend = law.bend(x, y) if len(frontier) >= law.MIN_POINTS_BEND else None
    start = law.straight_end(x, y)
    straight = slice(len(x) if start is None else start, None)
    # A law with a floor levels off, which is a bend upwards; it cannot follow one downwards.
    levelling = straight if bend and bend.found and bend.quadratic < 0 else slice(None)
    of_one_model = ""
    if len({cells[i].variant for i in frontier}) == 1:
        of_one_model = (
            f"Every run on the compute-optimal frontier is of {cells[frontier[0]].variant}: no law of a family can be "
            "seen. Add smaller models or smaller budgets of compute, or larger ones of both."
        )
    sizes = [cells[i].runs[0].summary["parameters"] for i in frontier]
    return Analysis(
        family=runs[0].trial.family,
        unit=unit,
        cells=cells,
        compute=compute,
        frontier=frontier,
        bend=bend,
        trusted=frontier[straight],
        line=of_one_model or _law(law.fit_line, x[straight], y[straight]),
        saturating=of_one_model or _law(law.fit_saturating, x[levelling], y[levelling]),
        growth=_or_reason(law.growth, x, sizes, [cells[i].epochs for i in frontier]),
        held_out={
            "line": of_one_model or _law(law.leave_largest_out, x[straight], y[straight], law.fit_line),
            "saturating": of_one_model or _law(law.leave_largest_out, x[levelling], y[levelling], law.fit_saturating),
        },
        diverged=diverged,
        unfinished=unfinished,
    )


def _law(fit: Callable[..., Result], x: np.ndarray, y: np.ndarray, *arguments: Any) -> Result | str:
    return _or_reason(fit, x, y, *arguments) if len(x) else _BENT


def best_cells(runs: Sequence[Run]) -> list[Cell]:
    """The best learning rate of every variant and epoch budget with a finished pre-training.

    The learning rate is chosen by the seed with which most were tried; the loss is the mean over seeds.
    """
    best_of_each = []
    pretraining = [run for run in runs if not run.trial.task and run.status != UNFINISHED]
    for key in sorted({(run.trial.variant, run.trial.epochs) for run in pretraining}):
        here = [run for run in pretraining if (run.trial.variant, run.trial.epochs) == key]
        seeds = [run.trial.seed for run in here]
        seed = max(sorted(set(seeds)), key=seeds.count)
        best = min((run for run in here if run.trial.seed == seed), key=lambda run: run.loss)
        if best.status != FINISHED:
            continue
        rate = best.trial.learning_rate
        same = tuple(run for run in here if run.trial.learning_rate == rate and run.status == FINISHED)
        loss = statistics.geometric_mean(run.loss for run in same)
        tried = tuple(sorted({run.trial.learning_rate for run in here}))
        best_of_each.append(Cell(*key, rate, loss, same, tried))
    return best_of_each


def describe(analysis: Analysis) -> str:
    """The analysis as text."""
    percent = f"{law.LEVEL:.0%} interval"
    lines = [
        f"{analysis.family}: {len(analysis.cells)} pairs of model and epoch budget; left out: {analysis.diverged} "
        f"diverged and {analysis.unfinished} unfinished runs.",
        f"Frontier: {len(analysis.frontier)} points of {analysis.models} model{'s' if analysis.models > 1 else ''}, "
        f"{analysis.decades:.2f} decades of compute ({UNITS[analysis.unit]}).",
    ]
    if bend := analysis.bend:
        what = "Bends" if bend.found else "No bend found"
        lines.append(f"{what}:  quadratic term {_interval(bend.quadratic, bend.interval)} ({percent})")
    if isinstance(analysis.line, str):
        lines.append(f"Line:       refused. {analysis.line}")
    else:
        if len(analysis.trusted) < len(analysis.frontier):
            low, high = analysis.compute[analysis.trusted[[0, -1]]]
            lines.append(
                f"Line:       refused for the whole frontier. Trust its last {analysis.trusted_decades:.2f} decades, "
                f"{len(analysis.trusted)} points from {low:.3g} to {high:.3g}, which show no bend:"
            )
        line = analysis.line
        lines.append(
            f"Line:       loss {line.text}, exponent {_interval(line.slope, line.slope_interval)} "
            f"({percent}), residuals {line.deviation:.2%}"
        )
    if isinstance(analysis.saturating, str):
        lines.append(f"With floor: not fitted. {analysis.saturating}")
    else:
        s = analysis.saturating
        lines.append(
            f"With floor: loss {s.text}, exponent {_interval(s.exponent, s.exponent_interval)}, "
            f"floor {_interval(s.floor, s.floor_interval)}"
        )
    if isinstance(analysis.growth, str):
        lines.append(f"Growth of the optimum: not fitted. {analysis.growth}")
    else:
        g = analysis.growth
        lines += [
            f"Best size (parameters) grows as compute^{_interval(g.size.slope, g.size.slope_interval)}",
            f"Best epoch budget grows as compute^{_interval(g.epochs.slope, g.epochs.slope_interval)}",
            f"They {'agree with' if g.agree else 'disagree with'} one rate for both: difference "
            f"{_interval(g.quotient.slope, g.quotient.slope_interval)}",
        ]
    for name, held_out in analysis.held_out.items():
        if isinstance(held_out, str):
            lines.append(f"Largest run from the smaller ones ({name}): {held_out}")
            continue
        cell = analysis.cells[analysis.frontier[-1]]
        low, high = held_out.interval
        lines.append(
            f"Largest run from the smaller ones ({name}): {cell.variant}, {cell.epochs:g} epochs: predicted "
            f"{held_out.predicted:.4g} ({low:.4g} to {high:.4g}), measured {held_out.actual:.4g}, "
            f"{'inside' if held_out.inside else 'outside'} the interval"
        )
    for edge, word in (("lower", "lowest"), ("upper", "highest")):
        if at_edge := [f"{cell.variant} {cell.epochs:g}" for cell in analysis.cells if cell.edge == edge]:
            lines.append(f"Best learning rate is the {word} tried for (model, epochs): {', '.join(at_edge)}")
    return "\n".join(lines)


def write(analysis: Analysis, directory: str, suffix: str = "") -> str:
    """Writes the fitted laws as `law.json`, its name followed by `suffix`; returns its path."""

    def values(item: law.Law | str) -> dict[str, object]:
        if isinstance(item, str):
            return {"reason": item}
        if isinstance(item, law.Line):
            return {"law": item.text, "exponent": item.slope, "interval": item.slope_interval}
        return {
            "law": item.text,
            **{name: getattr(item, name) for name in ("floor", "exponent", "floor_interval", "exponent_interval")},
        }

    frontier = [
        {"variant": c.variant, "epochs": c.epochs, "compute": compute, "loss": c.loss}
        for c, compute in ((analysis.cells[i], analysis.compute[i]) for i in analysis.frontier)
    ]
    growth: dict[str, object] = {"reason": analysis.growth}
    if not isinstance(analysis.growth, str):
        parts = {name: values(getattr(analysis.growth, name)) for name in ("size", "epochs", "quotient")}
        growth = {**parts, "agree": analysis.growth.agree}
    content = {
        "family": analysis.family,
        "unit": analysis.unit,
        "level": law.LEVEL,
        "frontier": frontier,
        "bend": dataclasses.asdict(analysis.bend) | {"found": analysis.bend.found} if analysis.bend else None,
        "trusted_points": len(analysis.trusted),
        "trusted_decades": analysis.trusted_decades,
        "line": values(analysis.line),
        "saturating": values(analysis.saturating),
        "growth": growth,
        "held_out": {
            name: {"reason": h} if isinstance(h, str) else {**dataclasses.asdict(h), "inside": h.inside}
            for name, h in analysis.held_out.items()
        },
        "diverged": analysis.diverged,
        "unfinished": analysis.unfinished,
    }
    path = os.path.join(directory, f"law{suffix}.json")
    files.write_atomically(path, json.dumps(content, indent=1))
    return path


def ranks(runs: Sequence[Run], task: str) -> tuple[list[tuple[Run, Run]], np.ndarray, np.ndarray, float]:
    """Checkpoints by pre-training loss against the same by fine-tuned accuracy.

    Returns:
      Pairs of a pre-training and its fine-tuning on `task`; the rank of each by loss and by error, 1 the best; and
      Spearman's rank correlation.

    Raises:
      StudyError: fewer than 3 checkpoints were fine-tuned.
    """
    tuned = {run.trial.pretraining: run for run in runs if run.trial.task == task and run.status == FINISHED}
    pairs = [(run, tuned[run.trial]) for run in runs if run.status == FINISHED and run.trial in tuned]
    if len(pairs) < 3:
        raise StudyError(f"Ranks need at least 3 checkpoints that were fine-tuned on {task!r}, found {len(pairs)}.")
    losses, errors = [one.loss for one, _ in pairs], [other.error for _, other in pairs]
    by_loss, by_error = stats.rankdata(losses), stats.rankdata(errors)
    if len(set(losses)) < 2 or len(set(errors)) < 2:
        raise StudyError(f"All checkpoints have one loss or one accuracy on {task!r}: there is no rank.")
    return pairs, by_loss, by_error, float(stats.spearmanr(by_loss, by_error).statistic)


def _or_reason(function: Callable[..., Result], *arguments: Any) -> Result | str:
    try:
        return function(*arguments)
    except StudyError as error:
        return str(error)


def _interval(value: float, ends: tuple[float, float]) -> str:
    return f"{value:.3g} ({ends[0]:.3g} to {ends[1]:.3g})"
