"""A run on a slice, rehearsed on this machine: all that can be known before its first step."""

import contextlib
import dataclasses
import os
import uuid
from collections.abc import Callable

import tensorflow as tf

from pipeline import files
from pipeline.errors import cause
from pipeline.tpu import check, made_up_devices, program
from pipeline.tpu.chips import Topology
from pipeline.tpu.compiler import CompilerError
from pipeline.tpu.estimate import Estimate, StepTime
from pipeline.train import checkpoint, components, controller, distribution
from pipeline.train.checkpoint import CheckpointError
from pipeline.train.evaluator import Evaluator
from pipeline.train.experiment import Experiment
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.step import TrainingStep
from pipeline.train.trainer import Trainer

_REPLICAS = 2  # made-up ones, which stand for all: each takes a replica's share of the batch


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found, and whether the first step could be taken."""

    what: str
    found: str
    passes: bool = True


@dataclasses.dataclass(frozen=True)
class Demand:
    """What the input of each host must deliver so that no chip waits.

    Attributes:
      steps_per_loop: steps of a compiled loop.
      images_per_second: of one host.
      bytes_per_second: of one host to its chips, uint8 pixels.
    """

    steps_per_loop: int
    images_per_second: float
    bytes_per_second: float


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What the checks found; `estimate` and `demand` are None where the step was not compiled or does not fit."""

    findings: tuple[Finding, ...]
    hosts: int
    estimate: Estimate | None
    demand: Demand | None

    @property
    def starts(self) -> bool:
        """Whether the first step would be taken."""
        return all(finding.passes for finding in self.findings)

    def as_dict(self) -> dict:
        """As JSON holds it: the estimate's fields, and those of the rehearsal."""
        estimate = self.estimate.as_dict() if self.estimate else {}
        demand = dataclasses.asdict(self.demand) if self.demand else None
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return {**estimate, "starts": self.starts, "hosts": self.hosts, "host_demand": demand, "findings": findings}


def rehearse(
    experiment: Experiment,
    configure: check.Configure,
    loop: Loop,
    model_dir: str,
    topology: Topology,
    images: int | None = None,
    progress: check.Progress = contextlib.nullcontext,
) -> tuple[Rehearsal, str]:
    """Goes through what a run of `experiment` meets before its first step, as far as a machine without a TPU can.

    Args:
      experiment, configure, images, progress: as of `check.check`.
      loop: the run's.
      model_dir: the run's folder; whether it can be written to is tried.
      topology: where it shall run.

    Returns:
      What was found, and the text of the optimised program ('' where there is none).
    """

    def shared(**folders: str) -> None:
        if not loop.shared_folders:
            distribution.check_shared(topology.hosts, elsewhere=False, **folders)

    findings = [
        Finding("Slice", f"chips: {topology.chips}, replicas: {topology.replicas}, hosts: {topology.hosts}"),
        _attempt("Batch", lambda: _batch(experiment, topology)),
        _attempt("Evaluation", lambda: _evaluation_batch(experiment, loop, topology)),
        _attempt("Records", lambda: _records(experiment, shared)),
        _attempt("Run folder", lambda: _run_folder(model_dir, shared)),
        _attempt("Starts from", lambda: _start(experiment, model_dir)),
    ]
    batch_divides, _, has_records = (finding.passes for finding in findings[1:4])
    estimate, hlo = None, ""
    if batch_divides and has_records:
        with progress("Tracing training and evaluation under TPUStrategy"):
            findings.append(_attempt("Under TPUStrategy", lambda: _traced(configure, loop, model_dir, topology)))
    if batch_divides:

        def compile_step() -> str:
            nonlocal estimate, hlo
            estimate, hlo = check.check(experiment, configure, topology, images=images, progress=progress)
            if not estimate.fit.fits:
                raise ValueError(f"does not fit: {estimate.fit.reason}")
            return "fits"

        findings.append(_attempt("Memory", compile_step))
    demand = _demand(estimate, estimate.time, experiment, loop, topology) if estimate and estimate.time else None
    return Rehearsal(tuple(findings), topology.hosts, estimate, demand), hlo


def _attempt(what: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(what, find())
    except tf.errors.OpError as error:
        return Finding(what, cause(error), passes=False)
    except (ValueError, OSError, CheckpointError, CompilerError) as error:
        return Finding(what, str(error), passes=False)


def _batch(experiment: Experiment, topology: Topology) -> str:
    shape = experiment.data.batch_shape(
        hosts=topology.hosts, replicas=topology.replicas, accumulation_steps=experiment.accumulation_steps
    )
    parts = f" in {shape.accumulation_steps} parts" if shape.accumulation_steps > 1 else ""
    return (
        f"{shape.images:,} images, {shape.replica_images} a replica{parts}; {shape.lanes} lanes, "
        f"{shape.lanes // shape.hosts} a host"
    )


def _evaluation_batch(experiment: Experiment, loop: Loop, topology: Topology) -> str:
    shape = experiment.data.evaluation_batch_shape(loop.eval_batch, hosts=topology.hosts, replicas=topology.replicas)
    return f"{shape.images:,} images, {shape.replica_images} a replica"


def _records(experiment: Experiment, shared: Callable[..., None]) -> str:
    data = experiment.data
    shared(DATA_DIR=data.directory)
    made = data.read_manifest()
    checked = dataclasses.replace(data, check_shards=True)
    sets = checked.training_records(made), checked.validation_records(made)
    shards = sum(len(each.split.shards) for each in sets)
    experiment.classes(len(made.classes))
    return (
        f"{sets[0].examples:,} to train on and {sets[1].examples:,} to evaluate on, {len(made.classes):,} classes, "
        f"in {shards:,} shards, all there"
    )


def _run_folder(model_dir: str, shared: Callable[..., None]) -> str:
    shared(model_dir=model_dir)
    existed = tf.io.gfile.exists(model_dir)
    files.make_folder(model_dir)
    probe = os.path.join(model_dir, f"rehearsal-{uuid.uuid4().hex}")
    files.write_atomically(probe, "")
    tf.io.gfile.remove(probe)
    if not existed:
        tf.io.gfile.rmtree(model_dir)
    return f"{model_dir} can be written to"


def _start(experiment: Experiment, model_dir: str) -> str:
    if paths := checkpoint.checkpoints(RunContext(model_dir).checkpoints):
        return f"{paths[-1]}, of a run that it continues"
    if experiment.initial_checkpoint:
        saved = checkpoint.find(experiment.initial_checkpoint)
        return f"the weights of {saved.path} ({saved.facts.get('variant', 'unknown variant')})"
    return "random weights"


def _traced(configure: check.Configure, loop: Loop, model_dir: str, topology: Topology) -> str:
    found = check.in_own_process(_trace, configure, loop, model_dir, topology)
    if found:
        raise ValueError(f"a TPU cannot run {len(found)} operations: {'; '.join(found[:3])}")
    return "training step and evaluation step trace, and hold no string, no unknown shape and no Python"


def _trace(configure: check.Configure, loop: Loop, model_dir: str, topology: Topology) -> list[str]:
    """What a TPU cannot run of both steps; in a process that has not used TensorFlow's devices yet."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * _REPLICAS)
    experiment = configure()
    share = lambda images: images // topology.replicas * _REPLICAS  # noqa: E731
    data = dataclasses.replace(experiment.data, batch=share(experiment.data.batch), check_shards=False)
    evaluated_batch = share(loop.eval_batch or experiment.data.batch)
    experiment = dataclasses.replace(experiment, data=data)
    loop = dataclasses.replace(loop, strategy="tpu", shared_folders=True)
    with made_up_devices.instead_of_a_tpu(_REPLICAS), tf.variable_creator_scope(program.without_values):
        run = components.assemble(RunContext(model_dir), experiment, loop)
        trainer = Trainer(experiment, run, TrainingStep.of(experiment, run.state, loop.uses_xla(run.strategy)))
        trainer.train_loop_begin()
        evaluator = Evaluator(run.strategy, experiment, run.validation, run.state.evaluated, evaluated_batch)
        datasets = {trainer.train_step: trainer.train_dataset, evaluator.eval_step: evaluator.eval_dataset}
        graphs = [
            tf.function(step, autograph=False).get_concrete_function(iter(dataset)).graph
            for step, dataset in datasets.items()
        ]
    return [problem for graph in graphs for problem in made_up_devices.problems(made_up_devices.on_tpu(graph))]


def _demand(estimate: Estimate, time: StepTime, experiment: Experiment, loop: Loop, topology: Topology) -> Demand:
    images_per_second = experiment.data.batch / topology.hosts / time.step_seconds
    return Demand(
        loop.steps_per_loop or controller.timed_steps(time.step_seconds, estimate.workload.steps),
        images_per_second,
        images_per_second * 3 * experiment.data.train_size**2,
    )
