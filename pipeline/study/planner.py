"""From a budget of compute to a run: which model, how many epochs, which learning rates, on what, and at what loss.

Without a study, the rules of "ConvNets Match Vision Transformers at Scale" decide: model and epochs grow at one rate,
so that each takes the square root of compute; one epoch of JFT-4B is best near 5k TPU-v4 core-hours. With a study, its
own exponents decide, and its fitted law predicts the loss.
"""

import dataclasses
import math
import os
import shlex
from collections.abc import Sequence

from pipeline.model import speeds, variants
from pipeline.study import StudyError, law
from pipeline.study.analysis import Analysis, Cell, analyse_families
from pipeline.study.run_files import CONFIG_FILE, CORE_HOURS, NFNET, Run

ONE_EPOCH_CORE_HOURS = 5_000  # where the best budget of JFT-4B passes one epoch, as reported
MIN_EPOCHS, MAX_EPOCHS = 0.25, 8.0  # what the paper studied
BATCH = 4096
LEARNING_RATE = 1.6  # best for small epoch budgets in the whole family, as reported
STEADY_RATE_VARIANTS = ("F0", "F1")  # whose best learning rate does not fall with the epoch budget; ours

# Shapes of TPU-v4 slices by cores, two a chip. A run's 64 lanes are shared by hosts of 4 chips, so 64 hosts at most.
TOPOLOGIES = {64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8"}
MAX_DAYS = 14  # a larger slice is taken where the run would last longer; ours


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A variant with the epochs that a budget of compute pays for, and those that a rule calls best.

    Attributes:
      variant: of the model.
      epochs: affordable, at most 8.
      compute: what these epochs take.
      distance: of the epochs affordable without that bound from the best ones, as a logarithm.
    """

    variant: str
    epochs: float
    compute: float
    distance: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
      budget, unit: what was asked for.
      family: of the model.
      choice, batch: the variant, its epochs, and the images of a step.
      speed: of the model on a TPU-v4 core, None for a plan in another unit.
      best_epochs: what the rule calls best for this budget.
      learning_rates: to try, in order.
      prediction: held-out loss by each fitted law, name to (value, low, high); empty without a study.
      remarks: assumptions and limits of the plan.
      command: of the run, a list of words.
    """

    budget: float
    unit: str
    family: str
    choice: Candidate
    speed: speeds.Speed | None
    best_epochs: float
    learning_rates: tuple[float, ...]
    batch: int
    prediction: dict[str, tuple[float, float, float]]
    remarks: tuple[str, ...]
    command: tuple[str, ...]


def from_paper(core_hours: float, images: float = speeds.STUDY_IMAGES) -> Plan:
    """A plan by the paper's rules for one run of pre-training, with epochs of `images` images.

    Raises:
      StudyError: the budget is not positive, or does not pay for the smallest model.
    """
    _check(core_hours, "core-hours")
    _check(images, "images")
    best = math.sqrt(core_hours / ONE_EPOCH_CORE_HOURS) * speeds.STUDY_IMAGES / images
    choice = _choose(core_hours, _core_hours_per_epoch(images), best)
    remarks = ["No study: by the paper's rules, which hold for JFT-4B; it gives no loss to predict from."]
    if images != speeds.STUDY_IMAGES:
        remarks.append(
            f"An epoch has {images:.3g} images and not the paper's 4 billion: the rule is taken to hold for the number "
            "of images seen. The gin file below is for JFT: set DATA_DIR and Experiment.num_classes."
        )
    remarks += _budget_remarks(core_hours, choice, best, "core-hours")
    # Two trials: 1.6 and half of it; halved from 1.5 epochs of a model beyond F1 on (ours).
    steady = choice.epochs < 1.5 or choice.variant in STEADY_RATE_VARIANTS
    rates = (LEARNING_RATE, LEARNING_RATE / 2) if steady else (LEARNING_RATE / 2, LEARNING_RATE / 4)
    if rates[0] < LEARNING_RATE:
        remarks.append(
            f"{LEARNING_RATE:g} is reported best for small budgets, and less for large models and budgets; that it is "
            f"{rates[0]:g} here is our guess."
        )
    command = _paper_command(choice, rates[0])
    return Plan(core_hours, CORE_HOURS, NFNET, choice, _speed(choice), best, rates, BATCH, {}, tuple(remarks), command)


def from_study(
    budget: float, unit: str, runs: Sequence[Run], images: float | None = None, family: str | None = None
) -> Plan:
    """A plan by the laws of the study `runs`, for one run of pre-training that takes `budget` of `unit`.

    An epoch has `images` images, as many as in the study where None. `family` may be None if the study has one.

    Raises:
      StudyError: the study cannot be fitted, its optimum does not grow, or its cost in `unit` is unknown.
    """
    _check(budget, unit)
    return from_analysis(budget, analyse_families(runs, unit).choose(family), images)


def from_analysis(budget: float, analysis: Analysis, images: float | None = None) -> Plan:
    """As `from_study`, in the unit and for the family of laws that are fitted already; `budget` is positive."""
    unit = analysis.unit
    if isinstance(analysis.growth, str):
        raise StudyError(f"The study does not say how the best epoch budget grows. {analysis.growth}")
    summary = analysis.cells[0].runs[0].summary
    own_images = summary["examples_seen"] / summary["epochs"]
    images = images or own_images
    compute_per_epoch = {}
    for cell in analysis.cells:
        run = cell.runs[0]
        compute_per_epoch[cell.variant] = run.compute(unit) / run.summary["examples_seen"] * images
    if unit == CORE_HOURS and analysis.family == NFNET:
        compute_per_epoch = _core_hours_per_epoch(images) | compute_per_epoch
    best = float(analysis.growth.epochs.predict([budget]).value[0]) * own_images / images
    choice = _choose(budget, compute_per_epoch, best)
    largest = analysis.compute[analysis.frontier].max()
    remarks = _budget_remarks(budget, choice, best, unit.replace("_", "-"))
    if budget > largest:
        remarks.append(
            f"The budget is {budget / largest:.3g} times the study's largest frontier run: the prediction holds if the "
            "law stays the same up to there, and the intervals do not cover that it may not."
        )
    if images != own_images:
        remarks.append("The study had another number of images; its law is taken to hold for the number seen.")
    own = [cell for cell in analysis.cells if cell.variant == choice.variant] or analysis.cells
    near = min(own, key=lambda cell: _distance(cell, choice, analysis))
    rates = (near.learning_rate, near.learning_rate / 2)
    remarks.append(f"Learning rates from the study's {near.variant}, {near.epochs:g} epochs: its best and half of it.")
    predictions = {name: _predicted(fit, choice.compute) for name, fit in analysis.laws.items()}
    if isinstance(analysis.line, str):
        remarks.append(analysis.line)
    elif len(analysis.trusted) < len(analysis.frontier):
        remarks.append(f"The line is that of the last {analysis.trusted_decades:.2g} decades, which show no bend.")
    command = _study_command(near.runs[0], choice, rates[0], on_tpu=unit == CORE_HOURS)
    batch = int(near.runs[0].bindings["Data.batch"])
    speed = (near.runs[0].tpu_speed or _speed(choice)) if unit == CORE_HOURS else None
    family = analysis.family
    return Plan(budget, unit, family, choice, speed, best, rates, batch, predictions, tuple(remarks), command)


def describe(plan: Plan) -> str:
    """The plan as text."""
    choice, unit = plan.choice, plan.unit.replace("_", "-")
    lines = [
        f"Budget            {_number(plan.budget)} {unit} for one run of pre-training",
        f"Model             {plan.family}{'-' if plan.family == NFNET else ', '}{choice.variant}",
        f"Epochs            {choice.epochs:g}, {_number(choice.compute)} {unit} "
        f"(the rule calls {plan.best_epochs:.2g} best)",
        f"Learning rates    {' and '.join(f'{rate:g}' for rate in plan.learning_rates)}, a run each; where the lowest "
        "is the best, half of it too, and where the highest is, twice of it",
    ]
    if plan.speed:
        cores = slice_cores(choice, plan.batch)
        lines += [
            f"Batch             {plan.batch}, {plan.batch / cores:g} per core",
            f"Topology          TPU v4-{cores} ({TOPOLOGIES[cores]} chips), {choice.compute / cores:.3g} hours",
            f"Speed             {plan.speed.images_per_second:.3g} images/s per core, {plan.speed.source}",
        ]
    else:
        lines.append("Batch, topology   those of the study")
    for name, (value, low, high) in plan.prediction.items():
        lines.append(f"Held-out loss     {value:.4g} ({low:.4g} to {high:.4g}, {law.LEVEL:.0%} for a new run; {name})")
    lines += [f"Note              {remark}" for remark in plan.remarks]
    lines.append(f"Run\n  {shlex.join(plan.command)}")
    return "\n".join(lines)


def slice_cores(choice: Candidate, batch: int = BATCH) -> int:
    """Cores of the smallest TPU-v4 slice on which the run fits and lasts at most 14 days; the largest at most.

    Images per core are taken to fit as `variants.STUDY_CORE_BATCHES` says; `pipeline/tpu_check.py` checks.
    """
    least = batch // variants.STUDY_CORE_BATCHES.get(choice.variant, min(variants.STUDY_CORE_BATCHES.values()))
    fitting = [cores for cores in TOPOLOGIES if least <= cores <= batch]
    if not fitting:
        raise StudyError(
            f"A batch of {batch} images does not suit a TPU v4 slice of {min(TOPOLOGIES)} to {max(TOPOLOGIES)} cores: "
            "make the study with a GLOBAL_BATCH between them and 64 images per core, or plan in FLOPs or seconds."
        )
    return next((cores for cores in fitting if choice.compute / cores <= MAX_DAYS * 24), fitting[-1])


def _core_hours_per_epoch(images: float) -> dict[str, float]:
    """TPU-v4 core-hours of an epoch of so many images, of each of the paper's variants."""
    return {variant: speeds.core_hours(variant, images) for variant in variants.STUDY_CORE_BATCHES}


def _choose(budget: float, compute_per_epoch: dict[str, float], best: float) -> Candidate:
    """The variant that makes of the budget nearest to the best number of epochs, at most 8."""
    best, candidates = min(best, MAX_EPOCHS), []
    for variant, compute in compute_per_epoch.items():
        affordable = budget / compute
        epochs = float(f"{affordable:.2g}")
        if epochs > affordable * 1.02:  # a report's core-hours are round numbers themselves
            epochs -= 10.0 ** (math.floor(math.log10(affordable)) - 1)
        epochs = float(f"{min(epochs, MAX_EPOCHS):.2g}")
        if affordable > 1.5 * MAX_EPOCHS:
            continue  # much of the budget would be left
        candidates.append(Candidate(variant, epochs, epochs * compute, abs(math.log(affordable / best))))
    if not candidates:  # more than the largest model can use
        largest = max(compute_per_epoch, key=lambda variant: compute_per_epoch[variant])
        return Candidate(largest, MAX_EPOCHS, MAX_EPOCHS * compute_per_epoch[largest], 0.0)
    return min(candidates, key=lambda candidate: candidate.distance)


def _budget_remarks(budget: float, choice: Candidate, best: float, unit: str) -> list[str]:
    remarks = [
        f"Each learning rate takes {_number(choice.compute)} {unit}; the budget is that of one run, without search."
    ]
    if choice.epochs < MIN_EPOCHS:
        remarks.append(f"{choice.epochs:g} epochs are fewer than the {MIN_EPOCHS:g} of the paper's shortest run.")
    if choice.compute < 0.8 * budget:
        remarks.append(
            f"{MAX_EPOCHS:g} epochs of this model use {choice.compute / budget:.0%} of the budget: more epochs or a "
            "larger model would be outside of what was studied."
        )
    if best > 1.5 * MAX_EPOCHS:
        remarks.append(f"The rule calls {best:.2g} epochs best; more than {MAX_EPOCHS:g} were not studied.")
    elif not 0.5 < choice.epochs / best < 2:
        remarks.append(f"No variant makes of the budget what the rule calls best, {best:.2g} epochs; this is nearest.")
    return remarks


def _paper_command(choice: Candidate, rate: float) -> tuple[str, ...]:
    name = f"{variants.identifier(choice.variant)}_jft"
    bindings = (f"EPOCHS={choice.epochs:g}", f"LEARNING_RATE={rate:g}", 'Loop.strategy="tpu"')
    return _command(os.path.join("gin", f"{name}.gin"), bindings, f"runs/{name}_e{choice.epochs:g}_lr{rate:g}")


def _study_command(run: Run, choice: Candidate, rate: float, on_tpu: bool) -> tuple[str, ...]:
    """The recipe of `run` with the chosen model, epochs and learning rate."""
    model = [f'nfnet.variant="{choice.variant}"'] if "nfnet.variant" in run.bindings else []  # else it is the run's own
    bindings = [*model, f"EPOCHS={choice.epochs:g}", f"LEARNING_RATE={rate:g}"]
    if on_tpu:
        bindings.append('Loop.strategy="tpu"')
    config = os.path.join(run.folder, CONFIG_FILE)
    return _command(config, bindings, f"runs/{choice.variant}_e{choice.epochs:g}_lr{rate:g}")


def _command(file: str, bindings: Sequence[str], model_dir: str) -> tuple[str, ...]:
    params = (f"--gin_param={binding}" for binding in bindings)
    return ("python", "pipeline/main.py", f"--gin_file={file}", *params, f"--model_dir={model_dir}")


def _distance(cell: Cell, choice: Candidate, analysis: Analysis) -> float:
    """Of a cell from the chosen model and budget: in size first, then in epochs, as logarithms."""
    sizes = [one.runs[0].summary["flops_per_image"] for one in analysis.cells if one.variant == choice.variant]
    size = sizes[0] if sizes else speeds.training_flops(choice.variant) / 3
    own = cell.runs[0].summary["flops_per_image"]
    return abs(math.log(own / size)) + abs(math.log(cell.epochs / choice.epochs))


def _speed(choice: Candidate) -> speeds.Speed:
    """Of an NFNet in the study's pre-training."""
    known = speeds.speed(choice.variant)
    where = f"at {speeds.RESOLUTION} pixels and {speeds.CLASSES:,} classes"
    return dataclasses.replace(known, source=f"{where}, {known.source}")


def _predicted(fit: law.Law, compute: float) -> tuple[float, float, float]:
    predicted = fit.predict([compute])
    value, low, high = (float(one[0]) for one in (predicted.value, *predicted.prediction))
    return value, low, high


def _number(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}"


def _check(value: float, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise StudyError(f"A plan needs a positive number of {what}, found {value:g}.")
