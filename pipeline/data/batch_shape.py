"""How a global batch divides over hosts, replicas and accumulation steps; everything it must be a multiple of."""

import dataclasses
import math

MAX_LANES = 64


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """A global batch and what divides it.

    The number of lanes depends on the batch alone, not on the hosts: each host reads whole lanes.

    Attributes:
      images: of the global batch.
      repeats: views of each example, which follow each other in the batch.
      group: images that are varied together (mixing), a multiple of `repeats`; a replica holds whole groups.
      hosts: processes that read input.
      replicas: devices that train together.
      accumulation_steps: parts of a replica's images that are taken one after the other.

    Raises:
      ValueError: the batch does not divide; names the number that does not fit, and the nearest batch that does.
    """

    images: int
    repeats: int = 1
    group: int = 1
    hosts: int = 1
    replicas: int = 1
    accumulation_steps: int = 1

    def __post_init__(self):
        if self.images < 1:
            raise ValueError(f"The global batch is {self.images} images; expected 1 or more.")
        if self.images % self.repeats:
            self._refuse(f"cannot hold {self.repeats} views of each example (Augmentation.repeats)")
        if self.images % self.replicas:
            self._refuse(f"cannot be divided over {self.replicas} replicas")
        if self.replica_images % self.group:
            self._refuse(
                f"gives each of {self.replicas} replicas {self.replica_images} images, which do not divide into groups "
                f"of {self.group} that are mixed with each other"
            )
        if self.replica_images % self.accumulation_steps:
            self._refuse(
                f"gives each of {self.replicas} replicas {self.replica_images} images, which cannot be taken in "
                f"{self.accumulation_steps} parts (Experiment.accumulation_steps)"
            )
        if self.lanes % self.hosts:
            self._refuse(f"has {self.lanes} lanes, which {self.hosts} hosts cannot share")

    def _refuse(self, problem: str) -> None:
        lanes = f"; {self.hosts} hosts need {MAX_LANES} to be a multiple of them" if MAX_LANES % self.hosts else ""
        nearest = max(1, round(self.images / self.multiple)) * self.multiple
        raise ValueError(
            f"A global batch of {self.images} images {problem}: use a multiple of {self.multiple}, for example "
            f"{nearest}{lanes}."
        )

    @property
    def multiple(self) -> int:
        """What the global batch must be a multiple of."""
        share = math.lcm(self.group, self.repeats, self.accumulation_steps)
        return math.lcm(self.replicas * share, self.hosts * self.repeats)

    @property
    def examples(self) -> int:
        """Examples in the global batch: each is there in `repeats` views."""
        return self.images // self.repeats

    @property
    def lanes(self) -> int:
        """Lanes of the global batch: the largest power of two up to 64 that divides its examples."""
        return math.gcd(self.examples, MAX_LANES)

    @property
    def replica_images(self) -> int:
        """Images of one replica."""
        return self.images // self.replicas

    def host_lanes(self, host: int) -> range:
        """The lanes that a host reads."""
        return range(host * self.lanes // self.hosts, (host + 1) * self.lanes // self.hosts)
