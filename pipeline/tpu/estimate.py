"""From a traced step and its compilation to what a run takes: memory, time, core-hours, money. Arithmetic alone.

The fields of the parts of an `Estimate` are those of the JSON that `tpu_check` writes. Bytes, FLOPs and cycles are
those of one replica.
"""

import dataclasses
import datetime

from pipeline.tpu import chips, hlo, traffic
from pipeline.tpu.chips import Topology
from pipeline.tpu.compiler import Compilation, Memory, Refusal
from pipeline.tpu.program import ArgumentBytes, Program, Workload

TOP = 10  # of the most expensive lines of source


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the step runs.

    Attributes:
      replicas: for which it is compiled, each with its collectives: all of the topology, unless fewer were asked for.
    """

    topology: str
    chip_config: str
    replicas: int
    cores_per_replica: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """Whether the step fits into the memory of a replica.

    Attributes:
      fits: whether it does.
      hbm_bytes: that memory, as the compiler reported it, or else as the kind of chip has it.
      needed_bytes: arguments, results, temporaries and code together; None where a refusing compiler did not say.
      refusal: the compiler's message where the step does not fit, else ''.
    """

    fits: bool
    hbm_bytes: int
    needed_bytes: int | None
    refusal: str

    @property
    def reason(self) -> str:
        """The first line of `refusal`."""
        return self.refusal.strip().splitlines()[0]


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """The largest batch of a replica that fits: compiled where verified, else predicted; None where unknown."""

    largest_replica_batch: int | None
    largest_is_verified: bool


@dataclasses.dataclass(frozen=True)
class StepTime:
    """What a step does and how long it takes.

    Attributes:
      estimated_cycles: the sum of the compiler's estimates; nothing overlaps but what the compiler counts so.
      collective_cycles: that the step waits for collectives, which the compiler does not count.
      collectives: what they move, by kind.
      flops, hbm_bytes_accessed: as the compiler counts them.
      step_seconds: both cycles over the clock.
      images_per_second_per_core: images of a step over its time and the replica's cores.
      mfu: FLOPs over what the replica's cores could do in that time, in bfloat16.
      flops_bound_seconds, hbm_bound_seconds: the step's FLOPs over the peak; its traffic over the bandwidth.
      most_expensive: lines of source.
    """

    estimated_cycles: int
    collective_cycles: int
    collectives: tuple[traffic.Traffic, ...]
    flops: float
    hbm_bytes_accessed: float
    step_seconds: float
    images_per_second_per_core: float
    mfu: float
    flops_bound_seconds: float
    hbm_bound_seconds: float
    most_expensive: tuple[hlo.Line, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of the whole epoch budget, without input, evaluation and checkpoints."""

    core_hours: float
    chip_hours: float
    dollars: float


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the numbers are from."""

    price_source: str
    compile_seconds: float
    versions: dict[str, str]
    date: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step and a run take; `compiled_memory`, `time` and `cost` are None where the step does not fit."""

    workload: Workload
    placement: Placement
    fit: Fit
    arguments: ArgumentBytes
    compiled_memory: Memory | None
    largest_batch: LargestBatch
    time: StepTime | None
    cost: Cost | None
    provenance: Provenance

    def as_dict(self) -> dict:
        """The fields of all parts, as JSON holds them; those of a part that is None are None."""
        fields: dict[str, object] = {
            field.name: None for part in (Memory, StepTime, Cost) for field in dataclasses.fields(part)
        }
        fields |= {"most_expensive": (), "collectives": ()}
        for part in vars(self).values():
            fields |= dataclasses.asdict(part) if part is not None else {}
        return fields | {"state_bytes": self.arguments.state_bytes}


def estimate(program: Program, answer: Compilation | Refusal, topology: Topology) -> Estimate:
    """The estimate of a traced step on `topology` by the compiler's answer; its largest batch is left open."""
    if isinstance(answer, Refusal):
        fit = Fit(False, answer.limit_bytes or topology.hbm_bytes, answer.used_bytes, answer.message)
        memory, time, cost = None, None, None
    else:
        fit = Fit(True, topology.hbm_bytes, answer.memory.total_bytes, "")
        memory, time = answer.memory, _step_time(program, answer, topology)
        cost = _cost(program.workload, time, topology)
    return Estimate(
        workload=program.workload,
        placement=Placement(topology.name, topology.configuration, program.replicas, topology.cores_per_replica),
        fit=fit,
        arguments=program.arguments,
        compiled_memory=memory,
        largest_batch=LargestBatch(None, False),
        time=time,
        cost=cost,
        provenance=Provenance(
            price_source=chips.PRICE_SOURCE,
            compile_seconds=round(answer.seconds, 1),
            versions=answer.versions,
            date=datetime.date.today().isoformat(),
        ),
    )


def _step_time(program: Program, compilation: Compilation, topology: Topology) -> StepTime:
    instructions = hlo.instructions(compilation.hlo)
    cycles = hlo.cycles(instructions)
    collectives, waited = traffic.of_step(instructions, compilation.hlo, topology, program.replicas)
    seconds = (cycles + waited) / topology.chip.clock
    peak = topology.of_replica(topology.chip.peak_flops)
    return StepTime(
        estimated_cycles=cycles,
        collective_cycles=waited,
        collectives=collectives,
        flops=compilation.flops,
        hbm_bytes_accessed=compilation.bytes_accessed,
        step_seconds=seconds,
        images_per_second_per_core=program.workload.replica_batch / seconds / topology.cores_per_replica,
        mfu=compilation.flops / seconds / peak,
        flops_bound_seconds=compilation.flops / peak,
        hbm_bound_seconds=compilation.bytes_accessed / topology.of_replica(topology.chip.hbm_bandwidth),
        most_expensive=tuple(hlo.by_source(instructions, program.sources, TOP)),
    )


def _cost(workload: Workload, time: StepTime, topology: Topology) -> Cost:
    core_hours = workload.images / time.images_per_second_per_core / 3600
    chip_hours = core_hours / topology.chip.cores
    return Cost(core_hours, chip_hours, chip_hours * topology.chip.dollars_per_hour)
