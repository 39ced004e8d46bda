"""The study's figures, each as PNG, SVG and the CSV behind it.

Models differ in colour, marker and line style at once, so that they can be distinguished in grey and when colour-blind;
of several families, each has one colour and line style.
"""

import csv
import os
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from pipeline.figure_style import STYLE
from pipeline.study import StudyError, law
from pipeline.study.analysis import Analysis, ranks
from pipeline.study.law import LEVEL
from pipeline.study.run_files import CORE_HOURS, DIVERGED, FINISHED, UNITS, Run

matplotlib.use("Agg")
# Okabe and Ito's colours, from dark to light so that neighbours differ in grey; their yellow is too pale for paper.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":")
_RC = {
    **STYLE,
    "font.size": 10,
    "svg.hashsalt": "study",  # the same figure is the same file
    "figure.constrained_layout.use": True,
}

# ImageNet top-1 error against core-hours of pre-training, as reported by "ConvNets Match Vision Transformers at Scale"
# (the TPU-v4 core-hours of the transformers are that paper's estimates).
REPORTED = (
    ("ViT-g/14", 120e3, 0.098),
    ("ViT-G/14", 280e3, 0.0955),
    ("SoViT-400m/14", 130e3, 0.097),
    ("NFNet-F7+", 110e3, 0.097),
    ("NFNet-F7+, repeated augmentation", 110e3, 0.096),
)


def draw(runs: Sequence[Run], analyses: Sequence[Analysis], directory: str) -> list[str]:
    """Draws every figure for which there are runs into `directory`; returns the paths of the PNG files.

    The figures of a family end in its name where there are several.

    Raises:
      StudyError: a run's cost in the analyses' unit is unknown.
    """
    os.makedirs(directory, exist_ok=True)
    styles = _styles(analyses)
    runs = [run for run in runs if run.trial.family in {analysis.family for analysis in analyses}]
    with plt.rc_context(_RC):
        paths = []
        for analysis in analyses:
            own = {name: styles[name] for name in _variants(analysis)}
            suffix = f"_{analysis.family}" if len(analyses) > 1 else ""
            paths += [_loss(analysis, own, directory, suffix), _learning_rate(analysis, own, directory, suffix)]
        if len(analyses) > 1:
            paths.insert(0, _families(analyses, directory))
        for task in sorted({run.trial.task for run in runs if run.trial.task and run.status == FINISHED}):
            if lost := sum(run.trial.task == task and run.status == DIVERGED for run in runs):
                print(f"{lost} fine-tunings of {task} diverged and are in none of its figures.")
            paths.append(_transfer(runs, analyses, task, styles, directory))
            try:
                ranked = ranks(runs, task)
            except StudyError as error:
                print(f"No figure of ranks: {error}")
                continue
            paths.append(_ranks(ranked, task, styles, directory))
    return paths


def _families(analyses: Sequence[Analysis], directory: str) -> str:
    """Held-out loss against compute: every family's runs and frontier, and its line, or else its law with a floor."""
    figure, axes = plt.subplots(figsize=(6.8, 4.4))
    rows: list[tuple] = []
    for place, analysis in enumerate(analyses):
        colour, on = _COLOURS[place % len(_COLOURS)], analysis.frontier
        marker = {"marker": _MARKERS[place % len(_MARKERS)], "color": colour, "lw": 0}
        axes.plot(analysis.compute, analysis.loss, alpha=0.3, ms=4, **marker)
        axes.plot(analysis.compute[on], analysis.loss[on], ms=6, label=analysis.family, **marker)
        for i, cell in enumerate(analysis.cells):
            values = (cell.variant, cell.epochs, cell.learning_rate, analysis.compute[i], cell.loss, int(i in on))
            rows.append((analysis.family, *values))
        if not analysis.laws:
            continue
        name, fitted = next(iter(analysis.laws.items()))
        reach = np.geomspace(*_fitted_compute(analysis, name), 100)
        predicted = fitted.predict(reach)
        axes.plot(reach, predicted.value, _LINES[place % len(_LINES)], color=colour, lw=1.4)
        axes.fill_between(reach, *predicted.confidence, color=colour, alpha=0.2, lw=0)
    axes.set(xscale="log", yscale="log", xlabel=UNITS[analyses[0].unit], ylabel="held-out loss")
    _plain_ticks(axes.yaxis)
    axes.legend(fontsize=8, title=f"frontiers, laws with {LEVEL:.0%} bands", title_fontsize=8)
    head = ("family", "variant", "epochs", "learning_rate", analyses[0].unit, "validation_loss", "on_frontier")
    return _save(figure, directory, "families", head, rows)


def _fitted_compute(analysis: Analysis, name: str) -> tuple[float, float]:
    """The range of compute that a law of `Analysis.laws` is of: the line's is that of the straight end."""
    compute = analysis.compute[analysis.trusted if name == "line" else analysis.frontier]
    return float(compute.min()), float(compute.max())


def _loss(analysis: Analysis, styles: dict, directory: str, suffix: str) -> str:
    """Held-out loss against compute by model (the paper's figure 2)."""
    figure, axes = plt.subplots(figsize=(8.6, 4.4))
    rows = []
    for variant, style in styles.items():
        here = [i for i, cell in enumerate(analysis.cells) if cell.variant == variant]
        axes.plot(analysis.compute[here], analysis.loss[here], label=variant, **style)
        for i in here:
            cell = analysis.cells[i]
            on_frontier = int(i in analysis.frontier)
            rows.append(
                (variant, cell.epochs, cell.learning_rate, len(cell.runs), analysis.compute[i], cell.loss, on_frontier)
            )
    on = analysis.frontier
    axes.plot(analysis.compute[on], analysis.loss[on], "o", ms=11, mfc="none", mec="#444444", lw=0, label="frontier")
    laws = []
    looks = {"line": ("#444444", "-"), "with floor": ("#999999", "--")}
    for name, fit in analysis.laws.items():
        low, high = _fitted_compute(analysis, name)
        reach = np.geomspace(low, high * 3, 100)
        predicted, (colour, line) = fit.predict(reach), looks[name]
        curves = np.column_stack([reach, predicted.value, *predicted.confidence, *predicted.prediction])
        laws += [(name, *row) for row in curves.tolist()]
        axes.plot(reach, predicted.value, line, color=colour, lw=1.2, label=f"{name}: {fit.text.replace('y', 'L', 1)}")
        if name == next(iter(analysis.laws)):
            axes.fill_between(reach, *predicted.prediction, color=colour, alpha=0.12, lw=0, label="for a new run")
            axes.fill_between(reach, *predicted.confidence, color=colour, alpha=0.25, lw=0, label="of the law")
    axes.set(xscale="log", yscale="log", xlabel=UNITS[analysis.unit], ylabel="held-out loss")
    axes.set_ylim(0.9 * analysis.loss.min(), 1.05 * analysis.loss.max())
    _plain_ticks(axes.yaxis)
    # Beside the axes: curves of loss may be anywhere in them.
    axes.legend(fontsize=8, title=f"bands: {LEVEL:.0%}", title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    head = ("law", analysis.unit, "validation_loss", "law_low", "law_high", "new_run_low", "new_run_high")
    _write_csv(os.path.join(directory, f"loss_laws{suffix}.csv"), head, laws)
    head = ("variant", "epochs", "learning_rate", "seeds", analysis.unit, "validation_loss", "on_frontier")
    return _save(figure, directory, f"loss{suffix}", head, rows)


def _learning_rate(analysis: Analysis, styles: dict, directory: str, suffix: str) -> str:
    """Best learning rate against epoch budget by model (the paper's figure 3)."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    rows = []
    for place, (variant, style) in enumerate(styles.items()):
        cells = sorted((cell for cell in analysis.cells if cell.variant == variant), key=lambda cell: cell.epochs)
        shift = 1.03 ** (place - (len(styles) - 1) / 2)  # grids by factors of two put models on top of each other
        epochs = [cell.epochs * shift for cell in cells]
        axes.plot(epochs, [cell.learning_rate for cell in cells], label=variant, **style)
        for cell in cells:
            rows.append((variant, cell.epochs, cell.learning_rate, cell.edge, min(cell.tried), max(cell.tried)))
    at_edge = [(cell.epochs, cell.learning_rate) for cell in analysis.cells if cell.edge]
    axes.set(xscale="log", yscale="log", xlabel="epoch budget", ylabel="best learning rate")
    axes.xaxis.set_major_locator(ticker.FixedLocator(sorted({cell.epochs for cell in analysis.cells})))
    axes.yaxis.set_major_locator(ticker.FixedLocator(sorted({rate for cell in analysis.cells for rate in cell.tried})))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(ticker.NullLocator())
    title = f"{len(at_edge)} of {len(analysis.cells)} are on the edge of what was tried" if at_edge else None
    axes.legend(fontsize=8, title=title, title_fontsize=8)
    head = ("variant", "epochs", "best_learning_rate", "edge", "lowest_tried", "highest_tried")
    return _save(figure, directory, f"learning_rate{suffix}", head, rows)


def _transfer(runs: Sequence[Run], analyses: Sequence[Analysis], task: str, styles: dict, directory: str) -> str:
    """Fine-tuned top-1 error against compute of pre-training, beside reported numbers (the paper's figure 1)."""
    pretraining = {run.trial: run for run in runs if not run.trial.task and run.status == FINISHED}
    tuned = [run for run in runs if run.trial.task == task and run.status == FINISHED]
    tuned = [run for run in tuned if run.trial.pretraining in pretraining]
    rows: list[tuple] = []
    unit, of_family = analyses[0].unit, {name: each.family for each in analyses for name in _variants(each)}
    for run in tuned:
        compute = pretraining[run.trial.pretraining].compute(unit)
        rows.append((run.trial.variant, run.trial.epochs, run.trial.learning_rate, run.trial.seed, compute, run.error))
    rows.sort(key=lambda row: (list(styles).index(row[0]) if row[0] in styles else len(styles), row[4]))
    together = unit == CORE_HOURS
    figure, panels = plt.subplots(1, 1 if together else 2, figsize=(6.4 if together else 10, 4.4), squeeze=False)
    axes, beside = panels[0][0], panels[0][-1]
    for variant, style in styles.items():
        here = [row for row in rows if row[0] == variant]
        if here:  # a line through the best of each budget; the other learning rates and seeds beside it
            best = [
                min((row for row in here if row[1] == epochs), key=lambda row: row[5])
                for epochs in sorted({row[1] for row in here})
            ]
            line = {} if len(analyses) == 1 else {"linestyle": "none"}
            axes.plot(*np.array([row[4:] for row in best]).T, label=variant, **{**style, **line})
            rest = {**style, "linestyle": "none", "alpha": 0.4, "ms": 4}
            axes.plot(*np.array([row[4:] for row in here]).T, **rest)
    for analysis in analyses if len(analyses) > 1 else ():  # a curve for each family: what no cheaper run beats
        here = [row for row in rows if of_family.get(row[0]) == analysis.family]
        on = [here[i] for i in law.frontier([row[4] for row in here], [row[5] for row in here])]
        if on:
            line = {name: styles[on[0][0]][name] for name in ("color", "linestyle")}
            axes.plot(*np.array([row[4:] for row in on]).T, lw=1.4, label=f"{analysis.family}: best", **line)
    axes.set(xscale="log", yscale="log", xlabel=UNITS[unit], ylabel=f"top-1 error after {task}")
    for i, (name, compute, error) in enumerate(REPORTED):
        beside.plot(compute, error, _MARKERS[-1 - i], color="#7F7F7F", mfc="white", ms=8, lw=0, label=name)
    if not together:
        label = "TPU-v4 core-hours of pre-training"
        beside.set(
            xscale="log", yscale="log", xlabel=label, ylabel="ImageNet top-1 error", title="as reported, at scale"
        )
        beside.set(xlim=(5e4, 5e5), ylim=(0.093, 0.1))
        beside.xaxis.set_major_locator(ticker.FixedLocator([5e4, 1e5, 2e5, 5e5]))
        beside.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
        beside.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_title("this study")
    for panel in panels[0]:
        _plain_ticks(panel.yaxis, percent=True)
        panel.legend(fontsize=8, title="hollow: as reported" if together else None, title_fontsize=8)
    head = ["model", "epochs", "learning_rate", "seed", unit, "top1_error"]
    if not together:
        head.append(CORE_HOURS)
        rows = [(*row, "") for row in rows]
    for name, compute, error in REPORTED:
        rows.append((name, "", "", "", compute, error) if together else (name, "", "", "", "", error, compute))
    return _save(figure, directory, f"transfer_{task}", head, rows)


def _ranks(ranked: tuple, task: str, styles: dict, directory: str) -> str:
    """Rank of checkpoints by pre-training loss against their rank by fine-tuned accuracy."""
    pairs, by_loss, by_error, correlation = ranked
    figure, axes = plt.subplots(figsize=(4.8, 4.6))
    axes.plot([1, len(pairs)], [1, len(pairs)], color="#999999", lw=1)
    rows = []
    for (one, other), x, y in zip(pairs, by_loss, by_error, strict=True):
        trial = one.trial
        rows.append((trial.variant, trial.epochs, trial.learning_rate, trial.seed, one.loss, other.error, x, y))
    for variant, style in styles.items():
        here = [row[-2:] for row in rows if row[0] == variant]
        if here:
            axes.plot(*np.array(here).T, label=variant, **{**style, "linestyle": "none"})
    axes.set(xlabel="rank by pre-training loss (1: best)", ylabel=f"rank by top-1 after {task} (1: best)")
    axes.set_title(f"Spearman's rank correlation {correlation:.2f}", fontsize=10)
    axes.legend(fontsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(integer=True))
    head = ("variant", "epochs", "learning_rate", "seed", "validation_loss", "top1_error", "rank_loss", "rank_top1")
    return _save(figure, directory, f"ranks_{task}", head, rows)


def _variants(analysis: Analysis) -> list[str]:
    """The models of a family, small ones first."""
    sizes = {cell.variant: cell.runs[0].summary["parameters"] for cell in analysis.cells}
    return sorted(sizes, key=lambda variant: sizes[variant])


def _styles(analyses: Sequence[Analysis]) -> dict[str, dict]:
    """Colour, marker and line of each model; of several families, each has one colour and line."""
    places = [(i, variant) for analysis in analyses for i, variant in enumerate(_variants(analysis))]
    families = {variant: place for place, analysis in enumerate(analyses) for variant in _variants(analysis)}
    return {
        variant: {
            "color": _COLOURS[hue % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _LINES[hue % len(_LINES)],
            "lw": 1.4,
            "ms": 5.5,
        }
        for i, variant in places
        for hue in [i if len(analyses) == 1 else families[variant]]
    }


def _plain_ticks(axis: Axis, percent: bool = False) -> None:
    """Labels a logarithmic axis that spans less than a decade or two with plain numbers."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(ticker.PercentFormatter(1, None) if percent else ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())
    low, high = axis.get_view_interval()
    if high / low < 1.6:
        axis.set_major_locator(ticker.MaxNLocator(5))


def _save(figure: Figure, directory: str, name: str, head: Sequence[str], rows: Iterable[Sequence]) -> str:
    path = os.path.join(directory, name)
    _write_csv(f"{path}.csv", head, rows)
    figure.savefig(f"{path}.svg", metadata={"Date": None})
    figure.savefig(f"{path}.png", dpi=150)
    plt.close(figure)
    return f"{path}.png"


def _write_csv(path: str, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
