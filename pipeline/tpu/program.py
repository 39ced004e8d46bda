"""The training step of an experiment as HLO, traced on this machine for each replica of a TPU slice, without data."""

import collections
import contextlib
import dataclasses
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2

from pipeline.data import manifest, record
from pipeline.data.order import EpochBudget
from pipeline.sharding.sharded_variable import of_replica
from pipeline.sharding.slice_strategy import SliceStrategy
from pipeline.train.experiment import Experiment
from pipeline.train.state import TrainState, create_state
from pipeline.train.step import TrainingStep

_PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STEP = os.path.join(_PROJECT, "train", "step.py")
_OURS = (os.path.abspath(__file__), os.path.join(_PROJECT, "sharding", "slice_strategy.py"))  # of tracing, not a step
_GRADIENT = "gradient_tape/"


class ProgramError(ValueError):
    """The step cannot be built: what is missing, and how to give it."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What the step depends on of the data: width of the last layer, training images, kind of labels."""

    classes: int
    images: int
    label_kind: str = record.SINGLE_LABEL


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a replica trains, and for how long.

    Attributes:
      model: name of its variant.
      train_size: pixels of a side of its images.
      classes: width of its last layer.
      parameters: trainable ones.
      replica_batch, global_batch: images of a step.
      images, steps: of the whole epoch budget; images count each view.
    """

    model: str
    train_size: int
    classes: int
    precision: str
    parameters: int
    replica_batch: int
    global_batch: int
    images: float
    steps: int


@dataclasses.dataclass(frozen=True)
class ArgumentBytes:
    """Sizes of the step's arguments on one replica, without the padding of their layout.

    Attributes:
      parameter_bytes, average_bytes: of the model's variables, and of their average.
      optimizer_bytes: of the optimiser's momentum or moments.
      other_bytes: of the ledger and of what else a run carries from step to step.
      batch_bytes: of the replica's part of the batch.
    """

    parameter_bytes: int
    average_bytes: int
    optimizer_bytes: int
    other_bytes: int
    batch_bytes: int

    @property
    def state_bytes(self) -> int:
        """Of all that stays in memory from step to step."""
        return self.parameter_bytes + self.average_bytes + self.optimizer_bytes + self.other_bytes


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced step, which each of `replicas` runs.

    Attributes:
      hlo: serialised HLO module; its parameters are the batch's tensors and the variables.
      replicas: over which its collectives go.
      workload, arguments: see there.
      sources: name of an operation to the line of this project that created it.
    """

    hlo: bytes
    replicas: int
    workload: Workload
    arguments: ArgumentBytes
    sources: dict[str, str]


def dataset_info(experiment: Experiment, images: int | None = None) -> DatasetInfo:
    """What the step depends on of the data: from `experiment`, or from its records where they can be read.

    `images` of the training split are `Data.train_examples` where None, or else the records' own, or `Data.images`.

    Raises:
      ProgramError: a number is neither configured nor recorded.
    """
    data = experiment.data
    try:
        dataset = manifest.read(data.directory)
        classes, examples = len(dataset.classes), dataset.split(data.train_split).written
        label_kind = dataset.label_kind
    except manifest.ManifestError:
        classes, examples, label_kind = None, None, record.SINGLE_LABEL
    classes, images = experiment.num_classes or classes, images or data.train_examples or examples or data.images
    if not (classes and images):
        needed = {
            "the number of classes: --gin_param='Experiment.num_classes=N'": classes,
            "the number of training images: --images=N, or --gin_param='Data.images=N'": images,
        }
        missing = "; and ".join(text for text, value in needed.items() if not value)
        raise ProgramError(f"There are no records in {data.directory!r}, so give {missing}.")
    return DatasetInfo(classes, images, label_kind)


def check_batch(experiment: Experiment, batch: int) -> None:
    """Raises a ProgramError where a replica cannot take its step on `batch` images."""
    try:
        experiment.data.batch_shape(batch, accumulation_steps=experiment.accumulation_steps)
    except ValueError as error:
        raise ProgramError(f"A replica cannot take {batch} images. {error}") from None


def trace(experiment: Experiment, dataset: DatasetInfo, batch: int, replicas: int = 1) -> Program:
    """Traces the step that the trainer would run on `batch` images of each of so many replicas, on a CPU.

    Raises:
      ProgramError: the batch does not suit the experiment.
    """
    check_batch(experiment, batch)
    strategy = SliceStrategy(replicas)
    with strategy.scope():
        state, budget = _state(experiment, dataset)
    step = TrainingStep.of(experiment, state)
    examples = example_batch(experiment, dataset, batch)
    compiled = tf.function(lambda batch: strategy.run(step, args=(batch,)), jit_compile=True, autograph=False)
    workload = Workload(
        model=step.model.variant,
        train_size=experiment.data.train_size,
        classes=dataset.classes,
        precision=experiment.precision,
        parameters=sum(variable.shape.num_elements() for variable in step.model.trainable_variables),
        replica_batch=batch,
        global_batch=experiment.data.batch,
        images=dataset.images * experiment.epochs * experiment.data.augmentation.repeats,
        steps=budget.steps,
    )
    hlo = _numbered_by_computation(compiled.experimental_get_compiler_ir(examples)(stage="hlo_serialized"))
    traced = compiled.get_concrete_function(examples)
    arguments = _argument_bytes(traced.variables, state, examples)
    return Program(hlo, replicas, workload, arguments, _sources(traced.graph))


def _numbered_by_computation(hlo: bytes) -> bytes:
    """The serialised HLO module with the instructions of each computation numbered from 0.

    TensorFlow numbers them through the module, and a reader of XLA reserves memory up to the highest number in each
    computation: 30 GB for the 232,000 instructions and 8,000 computations of F7+, where so 0.3 are enough.
    """
    module = hlo_pb2.HloModuleProto.FromString(hlo)
    for computation in module.computations:
        numbers = {instruction.id: number for number, instruction in enumerate(computation.instructions)}
        for instruction in computation.instructions:
            instruction.id = numbers[instruction.id]
            instruction.operand_ids[:] = [numbers[operand] for operand in instruction.operand_ids]
            before = [numbers[earlier] for earlier in instruction.control_predecessor_ids]
            instruction.control_predecessor_ids[:] = before
        computation.root_id = numbers[computation.root_id]
    return module.SerializeToString()


def _argument_bytes(
    variables: Sequence[tf.Variable], state: TrainState, examples: dict[str, tf.Tensor]
) -> ArgumentBytes:
    """Sizes of the `variables` that a traced step reads and writes, by the kinds of `state`, and of its `examples`."""
    kinds = {of_replica(v).ref(): kind for kind, group in state.groups.items() for v in group.values()}
    sizes: collections.Counter[str] = collections.Counter()
    for variable in variables:
        sizes[kinds.get(variable.ref(), "other")] += _bytes([variable])
    return ArgumentBytes(
        parameter_bytes=sizes["model"],
        average_bytes=sizes["ema"],
        optimizer_bytes=sizes["optimizer"],
        other_bytes=sizes["ledger"] + sizes["other"],
        batch_bytes=_bytes(examples.values()),
    )


def training_step(
    experiment: Experiment, dataset: DatasetInfo, unset: bool = True, device: str = "tpu"
) -> tuple[TrainingStep, EpochBudget]:
    """The trainer's step on a kind of device, from the state of step 0, and the epoch budget.

    `unset` leaves large variables unwritten.
    """
    state, budget = _state(experiment, dataset, unset, device)
    return TrainingStep.of(experiment, state), budget


def _state(
    experiment: Experiment, dataset: DatasetInfo, unset: bool = True, device: str = "tpu"
) -> tuple[TrainState, EpochBudget]:
    budget = experiment.budget(dataset.images)
    with tf.variable_creator_scope(without_values) if unset else contextlib.nullcontext():
        return create_state(experiment, dataset.classes, budget, device), budget


def example_batch(experiment: Experiment, dataset: DatasetInfo, batch: int) -> dict[str, tf.Tensor]:
    """Zeros of the shapes and dtypes of what the input gives a replica of `batch` images."""
    specs = experiment.data.training_batch(dataset.label_kind, batch, experiment.objective)
    return {name: tf.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}


def without_values(next_creator: Callable, **settings: Any) -> tf.Variable:
    """Creates a variable whose memory is not written: a billion random weights would take a minute and 4 GB each time.

    Tracing needs shapes alone. Tensors' initial values, the optimiser's, are there already and are few.
    """
    shape, dtype = tf.TensorShape(settings.get("shape")), tf.as_dtype(settings.get("dtype") or tf.float32)
    if callable(settings["initial_value"]) and shape.is_fully_defined() and dtype.is_floating:
        settings["initial_value"] = lambda: tf.raw_ops.Empty(shape=shape.as_list(), dtype=dtype, init=False)
    return next_creator(**settings)


def _bytes(values: Iterable[tf.Tensor | tf.Variable]) -> int:
    return sum(value.shape.num_elements() * value.dtype.size for value in values)


def _sources(graph: tf.Graph) -> dict[str, str]:
    """Operation name to `file:line function` of this project, for `graph` and the graphs of its functions.

    The gradient of an operation has the line of that operation, with ', gradient' after it.
    """
    sources, gradients = {}, []
    for operation in (operation for each in _graphs(graph) for operation in each.get_operations()):
        frame = _frame(operation)
        if operation.name.startswith(_GRADIENT) and (frame is None or frame.filename == _STEP):
            gradients.append(operation.name)
        elif frame is not None:
            path = os.path.relpath(frame.filename, os.path.dirname(_PROJECT))
            sources[operation.name] = f"{path}:{frame.lineno} {frame.name}"
    scopes: dict[str, str] = {}
    for name, source in sources.items():
        scopes.setdefault(os.path.dirname(name), source)
    for name in gradients:
        forward = os.path.dirname(name.removeprefix(_GRADIENT))
        convolution = f"{forward}/{os.path.basename(name).split('Backprop')[0]}"
        line = sources.get(forward) or sources.get(convolution) or scopes.get(forward)
        if line:
            sources[name] = f"{line}, gradient"
    return sources


def _graphs(graph: tf.Graph) -> Iterator[tf.Graph]:
    """`graph` and the graphs of its functions.

    Private: TensorFlow's public view of a graph's functions is `GraphDef`, which has no Python tracebacks.
    """
    yield graph
    for function in graph._functions.values():
        if hasattr(function, "graph"):
            yield from _graphs(function.graph)


def _frame(operation: tf.Operation) -> traceback.FrameSummary | None:
    """The innermost frame of this project in which the operation was created."""
    return next(
        (f for f in reversed(operation.traceback or ()) if f.filename.startswith(_PROJECT) and f.filename not in _OURS),
        None,
    )
