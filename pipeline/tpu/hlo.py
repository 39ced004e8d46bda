"""The text of an optimised TPU program: its instructions, with the cycles that the compiler estimates."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.+?) (?P<opcode>[a-z][\w\-]*)\(%?(?P<operand>[\w.\-]*)"
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_LIMIT = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_BODIES = {
    "while": re.compile(r"(?:body|condition)=%?([\w.\-]+)"),
    "call": re.compile(r"to_apply=%?([\w.\-]+)"),
    "conditional": re.compile(r"(?:(?:true|false)_computation=|branch_computations=\{|, )%([\w.\-]+)"),
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program, with what it costs in one step.

    Attributes:
      opcode: 'fusion' or 'convolution', for example.
      operation: name of the TensorFlow operation that it stands for; a fusion has that of its last one.
      cycles: estimated by the compiler, times how often it runs.
      line: its text.
      times: how often it runs.
    """

    opcode: str
    operation: str
    cycles: int
    line: str = dataclasses.field(default="", repr=False)
    times: int = 1


def instructions(text: str) -> list[Instruction]:
    """The instructions that a step runs, in the order of its schedule: the entry computation's, and those of its loops,
    calls and branches.

    A loop's instructions count once for each turn. Every branch of a conditional counts. What is inside of a fusion is
    part of its own estimate. An instruction without an estimate has 0 cycles.

    Raises:
      ValueError: the text has no entry computation.
    """
    bodies, entry = computations(text)
    return list(_run(bodies, entry, 1))


def loops(text: str) -> list[tuple[str, int]]:
    """The loops of the entry computation: the body of each, and how often it turns.

    Raises:
      ValueError: the text has no entry computation.
    """
    bodies, entry = computations(text)
    return [(loop[2], _turns(bodies, line)) for line in bodies[entry] if (loop := _LOOP.search(line))]


def with_entry(text: str, name: str) -> str:
    """The module with the computation `name` in the place of its entry computation."""
    start = text.index("\nENTRY ")
    rest = text[:start] + text[text.index("\n}", start) + 2 :]
    rest = re.sub(rf"^%?{re.escape(name)} ", f"ENTRY %{name} ", rest, flags=re.MULTILINE)
    return re.sub(r"^HloModule ([\w.\-]+).*", r"HloModule \1, is_scheduled=true", rest, count=1)


def cycles(step: Sequence[Instruction]) -> int:
    """Estimated cycles of a step."""
    return sum(instruction.cycles for instruction in step)


@dataclasses.dataclass(frozen=True)
class Line:
    """Instructions of one kind from one line of source: how many, and their cycles together."""

    source: str
    kind: str
    instructions: int
    cycles: int


def by_source(step: list[Instruction], sources: Mapping[str, str], count: int) -> list[Line]:
    """The `count` most expensive lines of source; `sources` maps names of operations to lines.

    Operations without a line are their own source, with the numbers in their names left out so that like ones count
    together.
    """
    groups = collections.defaultdict(list)
    for instruction in (each for each in step if each.cycles):
        operation = instruction.operation
        kind = re.sub(r"_\d+$", "", operation.rsplit("/", 1)[-1]) or instruction.opcode
        source = sources.get(operation) or re.sub(r"\d+", "*", operation.rpartition("/")[0]) or "(no name)"
        groups[source, kind].append(instruction.cycles)
    lines = [Line(source, kind, len(each), sum(each)) for (source, kind), each in groups.items()]
    return sorted(lines, key=lambda line: -line.cycles)[:count]


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name of each computation to its lines, and the entry's name.

    Raises:
      ValueError: the text has no entry computation.
    """
    found: dict[str, list[str]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
        elif match := _COMPUTATION.match(line):
            current = found[match[2]] = []
            entry = match[2] if match[1] else entry
    if entry is None:
        raise ValueError("This is no HLO module: it has no line that begins with ENTRY.")
    return found, entry


def _turns(bodies: Mapping[str, list[str]], line: str) -> int:
    """Turns of a loop: the compiler's count, or else the one limit that its condition compares with; 1 without
    either."""
    if trips := _TRIPS.search(line):
        return int(trips[1])
    loop = _LOOP.search(line)
    condition = "\n".join(bodies[loop[1]]) if loop else ""
    limits = _LIMIT.findall(condition)
    return int(limits[0]) if len(limits) == 1 and "direction=LT" in condition else 1


def _run(bodies: Mapping[str, list[str]], name: str, times: int) -> Iterator[Instruction]:
    for line in bodies[name]:
        if not (match := INSTRUCTION.match(line)):
            continue
        opcode = match["opcode"]
        if opcode in _BODIES:
            attributes = line.partition("), ")[2]  # after the operands
            often = _turns(bodies, line) if opcode == "while" else 1
            for body in _BODIES[opcode].findall(attributes):
                if body in bodies:
                    yield from _run(bodies, body, times * often)
        else:
            estimate, operation = _CYCLES.search(line), _OP_NAME.search(line)
            cycles = times * int(estimate[1]) if estimate else 0
            yield Instruction(opcode, operation[1] if operation else "", cycles, line, times)
