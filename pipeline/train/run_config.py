"""The settings of a run that do not change what it learns: its folder, its devices, its loops."""

import dataclasses
import os

import tensorflow as tf

from pipeline.train import distribution


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What a run is told from outside its experiment.

    Attributes:
      model_dir: folder of the run.
      config: the configuration as gin text, saved as `config.gin`.
      bindings: what decides the result, `configurable.parameter` to value; a run continues only under the same.
      config_digest: SHA-256 of `bindings`.
      force_resume: continue although configuration or data changed since the checkpoint.
    """

    model_dir: str
    config: str = ""
    bindings: dict[str, str] = dataclasses.field(default_factory=dict)
    config_digest: str = ""
    force_resume: bool = False

    @property
    def checkpoints(self) -> str:
        """Folder of the run's checkpoints."""
        return os.path.join(self.model_dir, "checkpoints")


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a run works, which does not change what it computes.

    Attributes:
      strategy: 'auto', 'tpu', 'mirrored', 'multi_worker' or 'one_device'; `tpu` and `cpu_replicas` belong to it.
      shared_folders: local folders are on a file system that every host of a TPU slice mounts at the same path.
      steps_per_loop: steps of one compiled loop; metrics and SIGTERM are polled between loops. None: as many as take
        about 20 s, and at most a hundredth of the run.
      checkpoint_every: steps between checkpoints.
      keep, keep_every_hours: the newest checkpoints stay, and of older ones one every so many hours (0: none).
      background_checkpoints: write checkpoints during training.
      evaluate_every_epochs: evaluate so often, and always at the end; None: only at the end.
      eval_batch: global batch of evaluation; the training batch where None.
      xla: compile the step; None compiles on TPUs and GPUs.
      on_ledger_mismatch: 'stop' or 'warn', where an epoch did not consume each example exactly once.
    """

    strategy: str = "auto"
    tpu: str = ""
    cpu_replicas: int = 1
    shared_folders: bool = False
    steps_per_loop: int | None = None
    checkpoint_every: int = 1000
    keep: int = 3
    keep_every_hours: float = 0.0
    background_checkpoints: bool = True
    evaluate_every_epochs: float | None = None
    eval_batch: int | None = None
    xla: bool | None = None
    on_ledger_mismatch: str = "stop"

    def __post_init__(self):
        for name in ("steps_per_loop", "checkpoint_every", "keep"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"Loop.{name} must be at least 1, found {getattr(self, name)}.")
        if self.on_ledger_mismatch not in ("stop", "warn"):
            raise ValueError(f"Loop.on_ledger_mismatch is {self.on_ledger_mismatch!r}; expected 'stop' or 'warn'.")

    def uses_xla(self, strategy: tf.distribute.Strategy) -> bool:
        """Whether the training step is compiled under `strategy`."""
        return distribution.uses_xla(strategy) if self.xla is None else self.xla

    def create_strategy(self) -> tf.distribute.Strategy:
        """The distribution strategy."""
        return distribution.create(self.strategy, self.tpu, self.cpu_replicas)
