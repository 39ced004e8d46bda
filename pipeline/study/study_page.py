"""The page of a study: figures, laws, runs, costs and a plan for ten times the compute, as one HTML file."""

import os
from collections.abc import Sequence

from pipeline import files
from pipeline.evaluation.page import Page, Picture, Section, Table, render
from pipeline.study import StudyError, analysis, comparison, planner
from pipeline.study.analysis import StudyAnalysis
from pipeline.study.comparison import Comparison, Point
from pipeline.study.run_files import DIVERGED, FINISHED, UNFINISHED, UNITS, Run

PAGE = "report.html"
_AHEAD = 10  # times the compute of the frontier's largest run, for which the page plans
_CAPTIONS = {
    "families": "Every family's runs, its frontier, and the line of the frontier's straight end.",
    "loss": "Held-out loss against compute by model, with the frontier and its laws.",
    "learning_rate": "Best learning rate against epoch budget by model.",
    "transfer": "Fine-tuned top-1 error against compute of pre-training.",
    "ranks": "Rank by pre-training loss against rank by fine-tuned accuracy.",
}


def write(
    directory: str,
    runs: Sequence[Run],
    study: StudyAnalysis,
    comparisons: Sequence[Comparison],
    points: Sequence[Point],
    figures: Sequence[str],
) -> str:
    """Writes the page of the study in `directory`, with the PNG files `figures` in it.

    Returns:
      The path of the page.
    """
    statuses = [run.status for run in runs]
    counts = {status: statuses.count(status) for status in (FINISHED, DIVERGED, UNFINISHED)}
    unit = next(iter(study.families.values())).unit
    sections = [
        *_comparison(comparisons, points),
        *(Section(f"Laws of {name}", _lines(analysis.describe(each))) for name, each in study.families.items()),
        *([Section("Left out", [f"{name}: {why}" for name, why in study.left_out.items()])] if study.left_out else []),
        Section("Figures", pictures=[_picture(path) for path in figures]),
        *(_plan(each) for each in study.families.values()),
        Section("Cells", ["Each model and epoch budget at its best learning rate."], tables=[_cells(study, unit)]),
        Section("Runs", tables=[_runs(runs, study, unit)]),
    ]
    best = min((run for run in runs if run.status == FINISHED and not run.trial.task), key=lambda run: run.loss)
    numbers = [(status, f"{count:,}") for status, count in counts.items()]
    numbers.append((f"lowest loss ({best.trial.variant}, {best.trial.epochs:g} epochs)", f"{best.loss:.4g}"))
    page = Page(f"Study {directory}", [f"Compute in {UNITS[unit]}."], numbers, sections)
    path = os.path.join(directory, PAGE)
    files.write_atomically(path, render(page))
    return path


def _lines(text: str) -> list[str]:
    return text.splitlines()


def _picture(path: str) -> Picture:
    name = os.path.splitext(os.path.basename(path))[0]
    caption = next((text for start, text in _CAPTIONS.items() if name.startswith(start)), name)
    with open(path, "rb") as file:
        return Picture(file.read(), f"{name}: {caption}")


def _comparison(comparisons: Sequence[Comparison], points: Sequence[Point]) -> list[Section]:
    lines = [*_lines("\n".join(map(comparison.describe, comparisons))), *map(str, points)]
    return [Section("Comparison", lines)] if lines else []


def _plan(each: analysis.Analysis) -> Section:
    """What the family's laws plan with ten times the compute of its largest frontier run."""
    budget = _AHEAD * float(each.compute[each.frontier].max())
    title = f"{each.family} with {_AHEAD} times the compute"
    try:
        plan = planner.describe(planner.from_analysis(budget, each))
    except StudyError as error:
        return Section(title, [f"No plan: {error}"])
    return Section(title, code=plan, code_title="the plan, with its command")


def _cells(study: StudyAnalysis, unit: str) -> Table:
    rows = [
        (name, cell.variant, cell.epochs, f"{cell.learning_rate:g}", f"{compute:.4g}", cell.loss, len(cell.runs))
        for name, each in study.families.items()
        for cell, compute in zip(each.cells, each.compute, strict=True)
    ]
    return Table(("family", "model", "epochs", "learning rate", unit, "held-out loss", "seeds"), rows)


def _runs(runs: Sequence[Run], study: StudyAnalysis, unit: str) -> Table:
    rows = []
    for run in runs:
        trial, finished = run.trial, run.status == FINISHED
        known = finished and not trial.task and trial.family in study.families
        cost = f"{run.compute(unit):.4g}" if known else "–"
        loss, error = (run.loss, run.error) if finished else (float("nan"), float("nan"))
        task = trial.task or "pre-training"
        rows.append((trial.name, trial.family, task, run.status, cost, run.wall_seconds, loss, error))
    return Table(("run", "family", "task", "status", unit, "wall seconds", "held-out loss", "top-1 error"), rows)
