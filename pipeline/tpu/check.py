"""An experiment and a topology -> an estimate: which batch, trace, compile, and the search for the largest batch."""

import concurrent.futures
import contextlib
import dataclasses
import math
import multiprocessing
from collections.abc import Callable

from pipeline.tpu import compiler, program
from pipeline.tpu import estimate as estimates
from pipeline.tpu.chips import LEGACY, Topology
from pipeline.tpu.estimate import Estimate
from pipeline.train.experiment import Experiment

Progress = Callable[[str], contextlib.AbstractContextManager]
ATTEMPTS = 4  # compilations of a search beyond the first
_LANE = 8  # batches of a TPU are padded to multiples of this


def quiet(title: str) -> contextlib.AbstractContextManager:
    """Shows no progress."""
    return contextlib.nullcontext()


def check(
    configured: Callable[[], Experiment],
    topology: Topology,
    replica_batch: int | None = None,
    images: int | None = None,
    search: bool = False,
    progress: Progress = quiet,
) -> tuple[Estimate, str]:
    """Compiles the step of an experiment for a replica of `topology`.

    Args:
      configured: makes the experiment, whose records need not exist. Another process calls it too, so it is pickled.
      topology: where.
      replica_batch: images of a replica; the global batch over the replicas where None.
      images: of the training split; what the records or the configuration say where None.
      search: find the largest batch of a replica by compiling; it is predicted from the one compilation otherwise.
      progress: called with what goes on, for a context in which it does.

    Returns:
      The estimate, and the text of the optimised program ('' where it does not fit).

    Raises:
      ProgramError: the step cannot be made.
      CompilerError: it cannot be compiled.
    """
    experiment = configured()
    known = program.facts(experiment, images)
    batch = _share(experiment, topology) if replica_batch is None else replica_batch
    program.check_batch(experiment, batch)

    def attempt(batch: int) -> tuple[Estimate, str]:
        with progress(f"Tracing the step of {batch} images"):
            traced = _trace_apart(configured, known, batch)
        with progress(f"Compiling {traced.model}, {batch} images, for {topology.name} ({topology.configuration})"):
            compiled = compiler.compile_hlo(traced.hlo, topology.name, topology.configuration)
        run = estimates.Run(
            experiment.data.batch, experiment.epochs, experiment.data.augmentation.repeats, known.images
        )
        what = {
            "train_size": experiment.data.train_size,
            "classes": known.classes,
            "precision": experiment.precision,
        }
        return estimates.estimate(traced, compiled, topology, run, **what), compiled.hlo

    found, hlo = attempt(batch)
    multiple = batch_multiple(experiment)
    if search:
        largest = largest_batch(found, multiple, lambda size: attempt(size)[0])
        return dataclasses.replace(found, largest_replica_batch=largest, largest_is_verified=True), hlo
    predicted = estimates.predicted_largest_batch(found, multiple)
    if predicted is not None and found.fits:
        predicted = max(predicted, batch)
    return dataclasses.replace(found, largest_replica_batch=predicted), hlo


def _trace_apart(configured: Callable[[], Experiment], known: program.Facts, batch: int) -> program.Program:
    """Traces in a process that has ended when this returns: the compiler needs the memory of the graph."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(_trace, configured, known, batch).result()
        except concurrent.futures.process.BrokenProcessPool:
            raise compiler.CompilerError(
                "The process that traces the step was killed, very likely for lack of memory: close other programs, or "
                "check on a machine with more."
            ) from None


def _trace(configured: Callable[[], Experiment], known: program.Facts, batch: int) -> program.Program:
    return program.trace(configured(), known, batch)


def batch_multiple(experiment: Experiment) -> int:
    """What the batches of a search are multiples of: whole groups and parts, and what a TPU pads to."""
    return math.lcm(_LANE, experiment.data.augmentation.group, experiment.accumulation_steps)


def largest_batch(found: Estimate, multiple: int, attempt: Callable[[int], Estimate]) -> int:
    """The largest batch that the compiler takes, as far as `ATTEMPTS` compilations find it; 0 if it takes none.

    Where `found` does not fit, batches are halved until one does. A line of memory through two batches that fit then
    predicts the largest; it is compiled, and where it does not fit, one an eighth smaller.
    """
    fitting, tried = [], 0
    size, refused = found.replica_batch, None
    if found.fits:
        fitting = [found]
        predicted = estimates.predicted_largest_batch(found, multiple)
        size = max(predicted, found.replica_batch + multiple) // multiple * multiple  # the prediction may be low
    else:
        refused = size
        size = size // 2 // multiple * multiple
    while tried < ATTEMPTS and size >= multiple and size not in [each.replica_batch for each in fitting]:
        tried += 1
        made = attempt(size)
        if made.fits:
            fitting.append(made)
        else:
            refused = min(size, refused or size)
        size = _next(fitting, refused, multiple)
    return max((each.replica_batch for each in fitting), default=0)


def _next(fitting: list[Estimate], refused: int | None, multiple: int) -> int:
    """The batch to try next, 0 for none: below what was refused, by the line through the largest two that fit."""
    limit = refused - multiple if refused else math.inf
    if not fitting:
        return refused // 2 // multiple * multiple
    *_, largest = ordered = sorted(fitting, key=lambda each: each.replica_batch)
    if len(ordered) > 1:
        size = estimates.fitted_largest_batch(ordered[-2], largest, multiple)
    else:
        size = estimates.predicted_largest_batch(largest, multiple)
    if refused and size >= refused:
        size = refused * 7 // 8 // multiple * multiple
    size = min(size, limit)
    return size if size > largest.replica_batch else 0


def advice(found: Estimate, experiment: Experiment) -> list[str]:
    """What to change where a step does not fit, most promising first; nothing where it does."""
    if found.fits:
        return []
    fixed = found.parameter_bytes + found.average_bytes + found.optimizer_bytes
    if fixed > 0.9 * found.hbm_bytes:
        return [
            f"Parameters, average and optimiser alone take {fixed / 2**30:.1f} GiB of {found.hbm_bytes / 2**30:.1f}: "
            + (
                "use --chip_config=megacore, where a replica has the memory of both cores, or a kind with more memory."
                if found.chip_config == LEGACY
                else "use a kind of TPU with more memory, or a smaller model."
            )
        ]
    lines = []
    over = (found.needed_bytes - fixed) / (found.hbm_bytes - fixed) if found.needed_bytes else 2.0
    least = experiment.accumulation_steps * 2 ** math.ceil(math.log2(max(over, 1.01)))
    if found.replica_batch % least == 0 and found.replica_batch // least % experiment.data.augmentation.group == 0:
        lines.append(
            f"--gin_param='Experiment.accumulation_steps={least}': the same batch in {least} parts, at little cost."
        )
    lines.append(
        f"A topology with about {math.ceil(over)} times as many chips for the same GLOBAL_BATCH "
        f"({found.global_batch}), or a GLOBAL_BATCH as much smaller (here --replica_batch="
        f"{max(int(found.replica_batch / over) // _LANE * _LANE, 1)})."
    )
    lines.append(
        "--gin_param='nfnet.recompute_stages=(0, 1)': NFNets compute the activations of their first stages again in "
        "the backward pass, for less memory and more time; (0, 1, 2, 3) does so in all."
    )
    return lines


def _share(experiment: Experiment, topology: Topology) -> int:
    batch, replicas = experiment.data.batch, topology.replicas
    if batch % replicas:
        raise program.ProgramError(
            f"The global batch of {batch} images does not divide among the {replicas} replicas of {topology.name}: "
            f"say --replica_batch=N, set GLOBAL_BATCH to a multiple of {replicas}, or choose another topology."
        )
    return batch // replicas
