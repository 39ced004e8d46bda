"""The collectives of an optimised program: what they move between chips, and how long the step waits for them.

The compiler counts no cycles for them. Here each takes as long as the links of the slice need at least.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.tpu import hlo
from pipeline.tpu.chips import Topology

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER = "all-reduce", "all-gather", "reduce-scatter"
PERMUTE = "collective-permute"
_KINDS = (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, PERMUTE, "all-to-all")
# The compiler writes some as fusions of an all-reduce of the whole with what cuts or fills it.
_FUSIONS = {"all-reduce-scatter": REDUCE_SCATTER, "all-gather": ALL_GATHER}

_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}")
_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What one collective moves.

    Attributes:
      kind: its opcode, 'all-reduce' for example.
      size: bytes that are summed, gathered, scattered or sent, of one replica.
      chips: how many exchange them.
    """

    kind: str
    size: int
    chips: int

    def seconds(self, topology: Topology) -> float:
        """The least time that the links of `topology` need."""
        if self.kind == ALL_REDUCE:
            return topology.all_reduce_seconds(self.size, self.chips)
        if self.kind == PERMUTE:
            return self.size / topology.chip.link_bandwidth if self.chips > 1 else 0.0
        return topology.gather_seconds(self.size, self.chips)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in a step: how many, their bytes, and the cycles that they need on the links."""

    kind: str
    count: int
    size: int
    cycles: float


def of_step(
    step: Sequence[hlo.Instruction], text: str, topology: Topology, replicas: int
) -> tuple[tuple[Traffic, ...], int]:
    """What the collectives of a step move, and the cycles that the step waits for them.

    The links carry one transfer after the other. The step waits for a collective of one instruction from its beginning
    to its end, and for one of two, a start and a done, as far as the instructions in between take less time.

    Args:
      step: the instructions, in the order of the schedule.
      text: the program that they are of.
      topology: where it runs.
      replicas: for which it was compiled.
    """
    bodies, _ = hlo.computations(text)
    begun: dict[str, tuple[float, hlo.Instruction]] = {}
    moved: list[Traffic] = []
    now = free = 0.0  # cycles since the step began, and when the links will be free
    for instruction in step:
        now += instruction.cycles
        parsed = hlo.INSTRUCTION.match(instruction.line)
        if parsed is None:
            continue
        if _is_start(parsed["opcode"]):
            begun[parsed["name"]] = now, instruction
            continue
        is_done = parsed["opcode"].endswith("-done") and parsed["operand"] in begun
        started, first = begun.pop(parsed["operand"]) if is_done else (now, instruction)
        for transfer in _transfers(first.line, instruction.line, bodies, topology, replicas):
            times = instruction.times
            cycles = transfer.seconds(topology) * topology.chip.clock * times
            moved.append(Traffic(transfer.kind, times, transfer.size * times, cycles))
            free = max(free, started) + cycles
            now = max(now, free)
    return _by_kind(moved), round(now - hlo.cycles(step))


def _by_kind(moved: Sequence[Traffic]) -> tuple[Traffic, ...]:
    kinds = {kind: [each for each in moved if each.kind == kind] for kind in _KINDS}
    return tuple(
        Traffic(kind, sum(e.count for e in each), sum(e.size for e in each), round(sum(e.cycles for e in each)))
        for kind, each in kinds.items()
        if each
    )


def _type(line: str) -> str:
    """The type of an instruction's result."""
    match = hlo.INSTRUCTION.match(line)
    assert match is not None
    return match["type"]


def _is_start(opcode: str) -> bool:
    return opcode in ("async-start", *(f"{kind}-start" for kind in _KINDS))


def _transfers(
    line: str, result: str, bodies: Mapping[str, Sequence[str]], topology: Topology, replicas: int
) -> Iterator[Transfer]:
    """The collectives of the instruction `line`; `result` is the line whose type is that of the result."""
    parsed = hlo.INSTRUCTION.match(line)
    if parsed is None:
        return
    kind = parsed["opcode"].removesuffix("-start")
    called = _CALLS.search(line)
    if kind in _KINDS:
        group = _group(line, replicas)
        size = _bytes(_type(result)) * (len(group) if kind == REDUCE_SCATTER else 1)
        yield Transfer(kind, size, _chips(line, group, topology))
    elif called:
        body = bodies.get(called[1], ())
        inner = [transfer for each in body for transfer in _transfers(each, each, bodies, topology, replicas)]
        name = re.sub(r"\.[\w.]*$", "", called[1])
        if inner and name in _FUSIONS:
            whole = line if name == ALL_GATHER else next(each for each in body if " parameter(0)" in each)
            size = _bytes(_type(whole))
            inner = [Transfer(_FUSIONS[name], size, inner[0].chips)]
        yield from inner


def _bytes(text: str) -> int:
    """Bytes of the arrays of a type, without the padding of their layout; those of less than a byte take one."""
    sizes = ((1 if dtype == "pred" else math.ceil(int(bits) / 8), dims) for dtype, bits, dims in _ARRAY.findall(text))
    return sum(width * math.prod(map(int, filter(None, dims.split(",")))) for width, dims in sizes)


def _group(line: str, replicas: int) -> Sequence[int]:
    """The replicas of the first group of a collective; all where it names none."""
    if match := _GROUP.search(line):
        return list(map(int, match[1].split(",")))
    if match := _COUNTED_GROUPS.search(line):
        dims = list(map(int, match[3].split(",")))
        order = list(map(int, match[4].split(","))) if match[4] else range(len(dims))
        numbers = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return numbers.reshape(int(match[1]), int(match[2]))[0].tolist()
    return range(replicas)


def _chips(line: str, group: Sequence[int], topology: Topology) -> int:
    """Chips among which an instruction moves bytes: of the group, or of the farthest pair of a permutation."""
    chip = lambda replica: int(replica) // topology.replicas_per_chip  # noqa: E731
    if pairs := _PAIRS.search(line):
        return max(len({chip(source), chip(target)}) for source, target in re.findall(r"(\d+),(\d+)", pairs[1]))
    return len(set(map(chip, group)))
