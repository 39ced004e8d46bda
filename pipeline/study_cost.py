"""What a study costs before it runs: FLOPs as counted, and TPU-v4 core-hours by the TPU's compiler."""

import ast
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Sequence

import tensorflow as tf

from pipeline import files, registry
from pipeline.model import cost, graph_cost, speeds
from pipeline.study import StudyError, run_files, search, sweep
from pipeline.study.run_files import Trial
from pipeline.study.search import Study
from pipeline.tpu import check, chips, compiler, estimate_table, program

DEFAULT_BATCH = 64  # images of a core, where the global batch is larger
_KEPT = (
    "topology",
    "chip_config",
    "train_size",
    "replica_batch",
    "parameters",
    "estimated_cycles",
    "flops",
    "needed_bytes",
    "images_per_second_per_core",
    "mfu",
    "versions",
    "date",
)


@dataclasses.dataclass(frozen=True)
class RunCost:
    """Of one run.

    Attributes:
      flops_per_image: of a forward pass, two a multiply-add.
      flops: of the run, three times a forward pass for each image and gradient pass.
      core_hours: of TPU v4; None where no speed is known.
    """

    flops_per_image: float
    flops: float
    core_hours: float | None


def of_trials(study: Study, trials: Iterable[Trial]) -> dict[Trial, RunCost]:
    """What runs cost by their configuration; their records need not exist if it has their number and classes.

    Raises:
      StudyError: neither records nor configuration say how many images or classes there are.
    """
    estimates = speeds.read_table(os.path.join(study.directory, run_files.SPEEDS_FILE), "models")
    flops_per_image: dict[tuple[str, str], float] = {}
    costs = {}
    for trial in trials:
        gin_files, params = sweep.configuration(study, trial)
        bindings = registry.bindings(gin_files, params)
        experiment = registry.configured(gin_files, params)
        try:
            data = program.dataset_info(experiment)
        except program.ProgramError as error:
            raise StudyError(
                f"The cost of {trial.name} cannot be counted. {error} Bindings for all runs of a study are "
                "Study.params; or make the records first."
            ) from error
        variant = ast.literal_eval(bindings.get("nfnet.variant", "None"))
        key = (trial.variant, trial.task)
        if key not in flops_per_image:
            size = experiment.data.train_size
            if variant:
                count = cost.multiply_adds(variant, size, data.classes)
            else:
                with tf.Graph().as_default():  # where variables take no memory
                    count = graph_cost.multiply_adds(experiment.create_model(data.classes), size)
            flops_per_image[key] = 2 * count
        images = data.images * experiment.epochs * experiment.data.augmentation.repeats
        passes, flops = experiment.gradient_passes, flops_per_image[key]
        speed = None if trial.task else estimates.get(trial.variant)
        costs[trial] = RunCost(
            flops, 3 * flops * images * passes, _core_hours(variant or trial.variant, speed, images, 3 * flops, passes)
        )
    return costs


def _core_hours(
    variant: str, speed: speeds.Speed | None, images: float, flops_per_image: float, passes: int
) -> float | None:
    if speed:
        return speed.core_hours(images, passes)
    try:
        return speeds.core_hours(variant, images, flops_per_image, passes)
    except speeds.UnknownSpeedError:
        return None


def describe(study: Study) -> str:
    """The cost of each cell of a study and of the whole of it, as Markdown."""
    seed = study.seeds[0]
    lines = []
    for family in study.members:
        cells = [cell for cell in study.grid if cell[0] in family.variants]
        once = {cell: study.trial(cell, family.learning_rates[0], seed) for cell in cells}
        costs = of_trials(study, once.values())
        lines += [f"{family.name}: FLOPs (TPU-v4 core-hours) of one pre-training", ""]
        budgets = study.budgets(family)
        lines += [
            _row(["model", "GFLOPs per image", *(f"{epochs:g} epochs" for epochs in budgets)]),
            _row(["---"] * (2 + len(budgets))),
        ]
        for variant in family.variants:
            of_model = [costs[once[variant, epochs]] for epochs in budgets]
            per_image = f"{of_model[0].flops_per_image / 1e9:.4g}"
            lines.append(_row([variant, per_image, *map(_text, of_model)]))
        lines += ["", f"Every cell once: {_text(_total(costs.values()))}", ""]
    runs = list(search.remaining(study, []))
    costs = of_trials(study, runs)
    tuned = [costs[trial] for trial in runs if trial.task]
    lines.append(
        f"The study, with at least {len(runs) - len(tuned)} pre-trainings: "
        f"{_text(_total(costs[trial] for trial in runs if not trial.task))}"
    )
    if tuned:
        lines.append(f"Fine-tuning, {len(tuned)} runs: {_text(_total(tuned))}")
    if any(each.core_hours is None for each in costs.values()):
        lines.append("Where core-hours are unknown, `scaling_study.py estimate` asks the TPU's compiler.")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(each: RunCost) -> str:
    hours = each.core_hours
    text = "unknown" if hours is None else f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
    return f"{each.flops:.3g} ({text})"


def _total(costs: Iterable[RunCost]) -> RunCost:
    costs = list(costs)
    hours = [each.core_hours for each in costs]
    known = [each for each in hours if each is not None]
    total = math.fsum(known) if len(known) == len(hours) else None
    return RunCost(math.nan, math.fsum(each.flops for each in costs), total)


def estimate(study: Study, topology: str, replica_batch: int | None = None) -> str:
    """Compiles the pre-training step of each model of a study for one core, and writes their speeds into its folder.

    Models that the file has from the same compiler are skipped.

    Args:
      study: whose models.
      topology: of the TPU, such as 'v4:2x2x1'.
      replica_batch: images of a core; the global batch, 64 at most, where None.

    Returns:
      The path of the file.

    Raises:
      StudyError: the topology or the compiler is not there, or a step does not fit, or cannot be compiled or built.
    """
    path = os.path.join(study.directory, run_files.SPEEDS_FILE)
    try:
        place, versions = chips.topology(topology, None), compiler.versions()
    except (chips.TopologyError, compiler.CompilerError) as error:
        raise StudyError(str(error)) from error
    rows: dict[str, dict] = {}
    if os.path.exists(path):
        with open(path) as file:
            rows = json.load(file)["models"]
    os.makedirs(study.directory, exist_ok=True)
    for family in study.members:
        for variant in family.variants:
            if rows.get(variant, {}).get("versions") == versions:
                continue
            trial = study.trial((variant, study.budgets(family)[0]), family.learning_rates[0], study.seeds[0])
            configured = functools.partial(registry.configured, *sweep.configuration(study, trial))
            experiment = configured()
            batch = replica_batch or min(experiment.data.batch, DEFAULT_BATCH)
            try:
                result, _ = check.check(experiment, configured, place, batch, replicas=1, progress=estimate_table.stage)
            except (compiler.CompilerError, program.ProgramError) as error:
                raise StudyError(f"The step of {variant} cannot be compiled. {error}") from error
            if not result.fit.fits:
                raise StudyError(f"{variant} does not fit with {batch} images per core: {result.fit.reason}")
            fields = result.as_dict()
            rows[variant] = {"gradient_passes": experiment.gradient_passes} | {name: fields[name] for name in _KEPT}
            files.write_atomically(path, json.dumps({"models": rows}, indent=1) + "\n")
            print(f"{variant}: {fields['images_per_second_per_core']:,.0f} images/s per core, {fields['mfu']:.1%} MFU")
    return path
