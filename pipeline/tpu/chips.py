"""The kinds of TPU: what a chip has, what it costs, and what the compiler calls it.

Sources: cores, HBM, peak and interconnect from Google Cloud's page of each kind, docs.cloud.google.com/tpu/docs/v4 and
so on. Clock: the peak over the FLOPs that the chip's matrix units do in a cycle.
"""

import dataclasses
import math
import re

GIB = 2**30
_HOST_CHIPS = 4  # in a slice of several hosts
LEGACY, MEGACORE, DEFAULT = "legacy", "megacore", "default"
PRICE_SOURCE = "approximate list price on demand in the US, not looked up; see cloud.google.com/tpu/pricing for today's"


class TopologyError(ValueError):
    """No such topology; says how one is written."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU; all numbers are a chip's.

    Attributes:
      kind: as in the name of a topology, `v4` in `v4:2x2x1`.
      cores: TensorCores.
      hbm_bandwidth: bytes/s.
      peak_flops: FLOP/s in bfloat16.
      clock: Hz.
      link_bandwidth: bytes/s of one link of the interconnect, one way.
      axes: of the topology: each chip has two links an axis.
      ring: the shortest axis that the interconnect closes to a ring.
      largest_host: chips of the largest slice that is one host; in a larger slice each host has 4 chips.
      dollars_per_hour: see `PRICE_SOURCE`.
      configurations: how the compiler may see a chip, its default first: 'legacy' makes each core a device, 'megacore'
        the whole chip; a chip of one core has 'default' alone. For each, the bytes of HBM that libtpu 0.0.51 leaves to
        a program on one device.
    """

    kind: str
    cores: int
    hbm_bandwidth: float
    peak_flops: float
    clock: float
    link_bandwidth: float
    axes: int
    ring: int
    largest_host: int
    dollars_per_hour: float
    configurations: dict[str, float]


CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v4", 2, 1.228e12, 275e12, 1.05e9, 50e9, 3, 4, 4, 3.22, {LEGACY: 15.25 * GIB, MEGACORE: 30.75 * GIB}),
        Chip("v5e", 1, 0.819e12, 197e12, 1.5e9, 50e9, 2, 16, 8, 1.20, {DEFAULT: 15.75 * GIB}),
        Chip("v5p", 2, 2.765e12, 459e12, 1.75e9, 100e9, 3, 4, 4, 4.20, {MEGACORE: 95.73 * GIB, LEGACY: 47.74 * GIB}),
        Chip("v6e", 1, 1.640e12, 918e12, 1.75e9, 100e9, 2, 16, 8, 2.70, {DEFAULT: 31.24 * GIB}),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips under one configuration; a replica of the training step runs on each of its devices."""

    chip: Chip
    shape: tuple[int, ...]
    configuration: str

    @property
    def name(self) -> str:
        """As the compiler and `--topology` write it."""
        return f"{self.chip.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def cores_per_replica(self) -> int:
        """Cores that work on one replica."""
        return 1 if self.configuration == LEGACY else self.chip.cores

    @property
    def replicas(self) -> int:
        """Number of replicas."""
        return self.chips * self.chip.cores // self.cores_per_replica

    @property
    def hosts(self) -> int:
        """Number of hosts (TPU VMs), each of which reads input."""
        return 1 if self.chips <= self.chip.largest_host else math.ceil(self.chips / _HOST_CHIPS)

    def of_replica(self, amount: float) -> float:
        """A replica's part of a chip's `amount` of bandwidth or FLOP/s."""
        return amount * self.cores_per_replica / self.chip.cores

    @property
    def hbm_bytes(self) -> int:
        """Memory of a replica that its program may use."""
        return round(self.chip.configurations[self.configuration])

    @property
    def replicas_per_chip(self) -> int:
        """Replicas on each chip; those of a chip have successive numbers."""
        return self.chip.cores // self.cores_per_replica

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s that a chip can send to its neighbours: on both links of each axis that is a ring, one of any other.

        Of chips along three axes, only slices of whole cubes have rings.
        """
        rings = self.chip.axes == 2 or all(size % self.chip.ring == 0 for size in self.shape)
        links = sum(0 if size == 1 else 2 if rings and size >= self.chip.ring else 1 for size in self.shape)
        return links * self.chip.link_bandwidth

    def gather_seconds(self, size: float, chips: int | None = None) -> float:
        """Least time until each of n `chips` has all `size` bytes, of which it had 1/n: `(n - 1) / n * size` on its
        links.

        It is also that of a reduce-scatter: each chip sends its share of the sums n - 1 times to be added up. All chips
        of the slice take part where None. What it costs to start a transfer and to add cores of a chip is left out.
        """
        chips = self.chips if chips is None else chips
        return (chips - 1) / chips * size / self.link_bandwidth if chips > 1 else 0.0

    def all_reduce_seconds(self, size: float, chips: int | None = None) -> float:
        """Least time to sum `size` bytes over `chips`: a reduce-scatter, and a gather of the sums."""
        return 2 * self.gather_seconds(size, chips)


def topology(name: str, configuration: str | None = None) -> Topology:
    """Parses a name such as `v4:2x2x1` or `v5e:4x4`.

    Args:
      name: kind of chip and chips along each axis.
      configuration: 'legacy' or 'megacore' for chips of two cores; the compiler's default where None.

    Raises:
      TopologyError: the name or the configuration is not one.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match or match[1] not in CHIPS:
        raise TopologyError(
            f"{name!r} is no topology: expected one of {', '.join(CHIPS)}, a colon, and the chips along each axis, "
            "such as v4:2x2x1 or v5e:4x4."
        )
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    if len(shape) != chip.axes or min(shape) < 1:
        raise TopologyError(
            f"{name!r} is no topology: chips of {chip.kind} have {chip.axes} axes, such as "
            f"{chip.kind}:{'x'.join(['2', '2', '1'][: chip.axes])}."
        )
    if configuration is not None and configuration not in chip.configurations:
        expected = " or ".join(chip.configurations) if chip.cores > 1 else "none: the chip has one core"
        raise TopologyError(f"A {chip.kind} has no configuration {configuration!r}; expected {expected}.")
    return Topology(chip, shape, configuration or next(iter(chip.configurations)))
