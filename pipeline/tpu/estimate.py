"""From a traced step and its compilation to what a run takes: memory, time, core-hours, money. Arithmetic alone."""

import dataclasses
import datetime

from pipeline.tpu import chips, hlo
from pipeline.tpu.chips import Topology
from pipeline.tpu.compiler import Compilation
from pipeline.tpu.program import Program

TOP = 10  # of the most expensive lines of source


@dataclasses.dataclass(frozen=True)
class Run:
    """What of an experiment decides the length of a run: global batch, epochs, views of an example, training images."""

    global_batch: int
    epochs: float
    repeats: int
    images: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What `tpu_check` says of a step: the fields of its JSON. Bytes, FLOPs and cycles are those of one replica.

    Attributes:
      model, train_size, classes, precision, parameters: what is trained.
      topology, chip_config, replicas, cores_per_replica: where.
      replica_batch, global_batch: images.
      fits: whether the step fits into the memory of a replica.
      hbm_bytes: that memory, as the compiler has it where it told.
      needed_bytes: arguments, results, temporaries and code together; what the compiler said where it refused.
      argument_bytes, output_bytes, temporary_bytes, code_bytes: the parts; outputs that replace no argument.
      parameter_bytes, average_bytes, optimizer_bytes, batch_bytes: the greatest part of the arguments.
      largest_replica_batch: that fits; see `largest_is_verified`.
      largest_is_verified: whether the compiler took that batch; else it is a prediction from one compilation.
      estimated_cycles: the sum of the compiler's estimates; nothing overlaps but what the compiler counts so.
      flops, hbm_bytes_accessed: of a step, as the compiler counts them.
      step_seconds: cycles over the clock.
      images_per_second_per_core: images of a step over its time and the replica's cores.
      mfu: FLOPs over what the replica's cores could do in that time, in bfloat16.
      flops_bound_seconds, hbm_bound_seconds: the step's FLOPs over the peak; its traffic over the bandwidth.
      gradient_bytes, all_reduce_seconds: see `chips.Topology.all_reduce_seconds`; not part of the step's time, since it
        can overlap with the backward pass.
      images, steps: of the epoch budget; images count each view.
      core_hours, chip_hours, dollars: of the budget, without input, evaluation, checkpoints and all-reduce.
      price_source: where the price is from.
      most_expensive: lines of source.
      compile_seconds, versions, date: of this estimate.
      refusal: what the compiler said where the step does not fit.
    """

    model: str
    train_size: int
    classes: int
    precision: str
    parameters: int
    topology: str
    chip_config: str
    replicas: int
    cores_per_replica: int
    replica_batch: int
    global_batch: int
    fits: bool
    hbm_bytes: int
    needed_bytes: int | None
    argument_bytes: int | None
    output_bytes: int | None
    temporary_bytes: int | None
    code_bytes: int | None
    parameter_bytes: int
    average_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    largest_replica_batch: int | None
    largest_is_verified: bool
    estimated_cycles: int | None
    flops: float | None
    hbm_bytes_accessed: float | None
    step_seconds: float | None
    images_per_second_per_core: float | None
    mfu: float | None
    flops_bound_seconds: float | None
    hbm_bound_seconds: float | None
    gradient_bytes: int
    all_reduce_seconds: float
    images: float
    steps: int
    core_hours: float | None
    chip_hours: float | None
    dollars: float | None
    price_source: str
    most_expensive: tuple[hlo.Line, ...]
    compile_seconds: float
    versions: dict[str, str]
    date: str
    refusal: str

    def as_dict(self) -> dict:
        """The estimate as JSON holds it."""
        return dataclasses.asdict(self)


def estimate(program: Program, compilation: Compilation, topology: Topology, run: Run, **what) -> Estimate:
    """Puts together what is known of a step.

    Args:
      program: the traced step.
      compilation: what the compiler said of it.
      topology: where it runs.
      run: how much it has to do.
      **what: `train_size`, `classes`, `precision` of the estimate.
    """
    known, memory = compilation.memory, compilation.memory
    hbm = compilation.limit_bytes or topology.hbm_bytes
    needed = memory.total if memory else compilation.used_bytes
    gradients = 4 * program.parameters
    found = Estimate(
        model=program.model,
        parameters=program.parameters,
        topology=topology.name,
        chip_config=topology.configuration,
        replicas=topology.replicas,
        cores_per_replica=topology.cores_per_replica,
        replica_batch=program.batch,
        global_batch=run.global_batch,
        fits=not compilation.refusal,
        hbm_bytes=hbm,
        needed_bytes=needed,
        argument_bytes=known and memory.arguments,
        output_bytes=known and memory.outputs,
        temporary_bytes=known and memory.temporaries,
        code_bytes=known and memory.code,
        parameter_bytes=program.bytes["parameters"],
        average_bytes=program.bytes["average"],
        optimizer_bytes=program.bytes["optimizer"],
        batch_bytes=program.bytes["batch"],
        largest_replica_batch=None,
        largest_is_verified=False,
        estimated_cycles=None,
        flops=compilation.flops,
        hbm_bytes_accessed=compilation.bytes_accessed,
        step_seconds=None,
        images_per_second_per_core=None,
        mfu=None,
        flops_bound_seconds=None,
        hbm_bound_seconds=None,
        gradient_bytes=gradients,
        all_reduce_seconds=topology.all_reduce_seconds(gradients),
        images=run.images * run.epochs * run.repeats,
        steps=program.steps,
        core_hours=None,
        chip_hours=None,
        dollars=None,
        price_source=chips.PRICE_SOURCE,
        most_expensive=(),
        compile_seconds=round(compilation.seconds, 1),
        versions=compilation.versions,
        date=datetime.date.today().isoformat(),
        refusal=compilation.refusal,
        **what,
    )
    return _with_times(found, program, compilation, topology) if found.fits else found


def _with_times(found: Estimate, program: Program, compilation: Compilation, topology: Topology) -> Estimate:
    chip, ran = topology.chip, hlo.instructions(compilation.hlo)
    cycles = hlo.cycles(ran)
    seconds = cycles / chip.clock
    speed = program.batch / seconds / topology.cores_per_replica
    core_hours = found.images / speed / 3600
    peak = topology.of_replica(chip.peak_flops)
    return dataclasses.replace(
        found,
        estimated_cycles=cycles,
        step_seconds=seconds,
        images_per_second_per_core=speed,
        mfu=compilation.flops / seconds / peak,
        flops_bound_seconds=compilation.flops / peak,
        hbm_bound_seconds=compilation.bytes_accessed / topology.of_replica(chip.hbm_bandwidth),
        core_hours=core_hours,
        chip_hours=core_hours / chip.cores,
        dollars=core_hours / chip.cores * chip.dollars_per_hour,
        most_expensive=tuple(hlo.by_source(ran, program.sources, TOP)),
    )


def predicted_largest_batch(found: Estimate, multiple: int) -> int | None:
    """The largest batch, a multiple of `multiple`, that should fit by one compilation; None where nothing is known.

    Temporaries and the batch are taken to grow with it, all else not. Some temporaries, the gradients among them, do
    not grow, so that a batch above the compiled one rather fits than not.
    """
    if found.temporary_bytes is None:
        return None
    growing = (found.temporary_bytes + found.batch_bytes) / found.replica_batch
    fixed = found.needed_bytes - growing * found.replica_batch
    return max(int((found.hbm_bytes - fixed) / growing) // multiple * multiple, 0)


def fitted_largest_batch(first: Estimate, second: Estimate, multiple: int) -> int:
    """The same from two compilations of different batches: memory as a line through both."""
    slope = (second.needed_bytes - first.needed_bytes) / (second.replica_batch - first.replica_batch)
    fixed = first.needed_bytes - slope * first.replica_batch
    if slope <= 0:
        return max(first.replica_batch, second.replica_batch)
    return max(int((first.hbm_bytes - fixed) / slope) // multiple * multiple, 0)
