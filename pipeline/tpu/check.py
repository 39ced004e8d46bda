"""An experiment and a topology -> an estimate: which batch, trace, compile, the largest batch, and what to change."""

import concurrent.futures
import contextlib
import dataclasses
import math
import multiprocessing
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.tpu import compiler, largest_batch, program
from pipeline.tpu.chips import LEGACY, Topology
from pipeline.tpu.estimate import Estimate, estimate
from pipeline.train.experiment import Experiment

Result = TypeVar("Result")
Configure = Callable[[], Experiment]
Progress = Callable[[str], contextlib.AbstractContextManager]
_LANE = 8  # batches of a TPU are padded to multiples of this


def check(
    experiment: Experiment,
    configure: Configure,
    topology: Topology,
    replica_batch: int | None = None,
    images: int | None = None,
    search: bool = False,
    replicas: int | None = None,
    progress: Progress = contextlib.nullcontext,
) -> tuple[Estimate, str]:
    """Compiles the step of an experiment for the replicas of `topology`.

    Args:
      experiment: what is trained; its records need not exist.
      configure: configures the same experiment in the process that traces it: an experiment holds gin's functions and
        cannot be pickled, and this can.
      topology: where.
      replica_batch: images of a replica; the global batch over the replicas where None.
      images: of the training split; as recorded or configured where None.
      search: find the largest batch of a replica by compiling; it is predicted from the one compilation otherwise.
      replicas: for which the step is compiled, with its collectives; all of the topology where None. 1 shows what a
        step costs without its neighbours.
      progress: called with the name of each stage, for a context in which it runs.

    Returns:
      The estimate, and the text of the optimised program ('' where it does not fit).

    Raises:
      ProgramError: the step cannot be built, or the topology does not have so many replicas.
      CompilerError: it cannot be compiled.
    """
    dataset = program.dataset_info(experiment, images)
    batch = share_of_replica(experiment, topology) if replica_batch is None else replica_batch
    program.check_batch(experiment, batch)
    replicas = topology.replicas if replicas is None else replicas
    if not 1 <= replicas <= topology.replicas:
        raise program.ProgramError(
            f"{topology.name} ({topology.configuration}) has {topology.replicas} replicas, so that the step cannot be "
            f"compiled for {replicas}: give a number between them and 1, or another topology."
        )

    def attempt(batch: int) -> tuple[Estimate, str]:
        with progress(f"Tracing the step of {batch} images"):
            traced = in_own_process(_trace, configure, dataset, batch, replicas)
        model = traced.workload.model
        where = f"{topology.name} ({topology.configuration}), replicas: {replicas}"
        with progress(f"Compiling {model}, {batch} images, for {where}"):
            answer = compiler.compile_hlo(traced.hlo, topology.name, topology.configuration, replicas)
        optimised = answer.hlo if isinstance(answer, compiler.Compilation) else ""
        return estimate(traced, answer, topology), optimised

    first, hlo = attempt(batch)
    multiple = batch_multiple(experiment)
    if search:
        largest = largest_batch.search(first, multiple, lambda size: attempt(size)[0])
    else:
        largest = largest_batch.predict(first, multiple)
    return dataclasses.replace(first, largest_batch=largest), hlo


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a process that has ended when this returns: the compiler needs the memory of a graph."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except concurrent.futures.process.BrokenProcessPool:
            raise compiler.CompilerError(
                "The process that traces the step was killed, very likely for lack of memory: close other programs, or "
                "check on a machine with more."
            ) from None


def _trace(configure: Configure, dataset: program.DatasetInfo, batch: int, replicas: int) -> program.Program:
    try:
        return program.trace(configure(), dataset, batch, replicas)
    except ValueError as error:  # Keras' own subclasses, made where they are raised, cannot leave the process
        raise program.ProgramError(str(error)) from None


def batch_multiple(experiment: Experiment) -> int:
    """What the batches of a search are multiples of: whole groups and parts, and what a TPU pads to."""
    return math.lcm(_LANE, experiment.data.augmentation.group, experiment.accumulation_steps)


def share_of_replica(experiment: Experiment, topology: Topology) -> int:
    """Images of a replica when all replicas of `topology` share the global batch.

    Raises:
      ProgramError: it does not divide among them.
    """
    batch, replicas = experiment.data.batch, topology.replicas
    if batch % replicas:
        raise program.ProgramError(
            f"The global batch of {batch} images does not divide among the {replicas} replicas of {topology.name}: "
            f"say --replica_batch=N, set GLOBAL_BATCH to a multiple of {replicas}, or choose another topology."
        )
    return batch // replicas


def advice(result: Estimate, experiment: Experiment) -> list[str]:
    """What to change where a step does not fit, most promising first; nothing where it does."""
    if result.fit.fits:
        return []
    batch, hbm_bytes, needed_bytes = result.workload.replica_batch, result.fit.hbm_bytes, result.fit.needed_bytes
    fixed_bytes = result.arguments.state_bytes
    if fixed_bytes > 0.9 * hbm_bytes:
        return [
            f"Parameters, average and optimiser alone take {fixed_bytes / 2**30:.1f} GiB of {hbm_bytes / 2**30:.1f}: "
            + (
                "use --chip_config=megacore, where a replica has the memory of both cores, or a kind with more memory."
                if result.placement.chip_config == LEGACY
                else "use a kind of TPU with more memory, or a smaller model."
            )
        ]
    lines = []
    excess = (needed_bytes - fixed_bytes) / (hbm_bytes - fixed_bytes) if needed_bytes else 2.0
    steps = experiment.accumulation_steps * 2 ** math.ceil(math.log2(max(excess, 1.01)))
    if batch % steps == 0 and batch // steps % experiment.data.augmentation.group == 0:
        lines.append(
            f"--gin_param='Experiment.accumulation_steps={steps}': the same batch in {steps} parts, at little cost."
        )
    lines.append(
        f"A topology with about {math.ceil(excess)} times as many chips for the same GLOBAL_BATCH "
        f"({result.workload.global_batch}), or a GLOBAL_BATCH as much smaller (here --replica_batch="
        f"{max(int(batch / excess) // _LANE * _LANE, 1)})."
    )
    lines.append(
        "--gin_param='nfnet.recompute_stages=(0, 1)': NFNets compute the activations of their first stages again in "
        "the backward pass, for less memory and more time; (0, 1, 2, 3) does so in all."
    )
    return lines
