"""The training step of an experiment as HLO, traced on this machine for one replica of a TPU, without data."""

import contextlib
import dataclasses
import os
import traceback

import tensorflow as tf

from pipeline.data import manifest, record
from pipeline.data.order import EpochBudget
from pipeline.train import state as states
from pipeline.train.experiment import Experiment
from pipeline.train.step import TrainingStep

_PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STEP = os.path.join(_PROJECT, "train", "step.py")
_GRADIENT = "gradient_tape/"


class ProgramError(ValueError):
    """The step cannot be made: what is missing, and how to give it."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the records would tell: width of the last layer, images of the training split, kind of labels."""

    classes: int
    images: int
    label_kind: str = record.SINGLE_LABEL


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced step of one replica.

    Attributes:
      hlo: serialised HLO module; its parameters are the batch's tensors and the variables.
      model: name of the model's variant.
      batch: images of the replica.
      steps: of the whole epoch budget.
      parameters: trainable parameters.
      bytes: of 'parameters' (all of the model's variables), 'average', 'optimizer' and 'batch'.
      sources: name of an operation to the line of this project that made it.
    """

    hlo: bytes
    model: str
    batch: int
    steps: int
    parameters: int
    bytes: dict[str, int]
    sources: dict[str, str]


def facts(experiment: Experiment, images: int | None = None) -> Facts:
    """What the step depends on of the data: from `experiment`, or from its records where they can be read.

    Args:
      experiment: what is trained.
      images: of the training split; None takes the records' own, or else `Data.images`.

    Raises:
      ProgramError: neither tells.
    """
    data = experiment.data
    try:
        found = manifest.read(data.directory)
        classes, examples, label_kind = len(found.classes), found.split(data.train_split).written, found.label_kind
    except manifest.ManifestError:
        classes, examples, label_kind = None, None, record.SINGLE_LABEL
    classes, images = experiment.num_classes or classes, images or examples or data.images
    missing = [
        text
        for value, text in (
            (classes, "the number of classes: --gin_param='Experiment.num_classes=N'"),
            (images, "the number of training images: --images=N, or --gin_param='Data.images=N'"),
        )
        if not value
    ]
    if missing:
        raise ProgramError(f"There are no records in {data.directory!r}, so give " + "; and ".join(missing) + ".")
    return Facts(classes, images, label_kind)


def check_batch(experiment: Experiment, batch: int) -> None:
    """Raises a ProgramError where a replica cannot take its step on `batch` images."""
    try:
        experiment.data.batch_shape(batch, accumulation_steps=experiment.accumulation_steps)
    except ValueError as error:
        raise ProgramError(f"A replica cannot take {batch} images. {error}") from None


def trace(experiment: Experiment, known: Facts, batch: int) -> Program:
    """Traces the step that the trainer would run, on a CPU.

    Args:
      experiment: what is trained.
      known: its data's facts.
      batch: images of the replica.

    Raises:
      ProgramError: the batch does not suit the experiment.
    """
    check_batch(experiment, batch)
    step, budget = training_step(experiment, known)
    examples = example_batch(experiment, known, batch)
    compiled = tf.function(step.__call__, jit_compile=True, autograph=False)
    hlo = compiled.experimental_get_compiler_ir(examples)(stage="hlo_serialized")
    graph = compiled.get_concrete_function(examples).graph
    trained = step.model.trainable_variables
    averaged = [] if experiment.ema_decay is None else step.model.variables
    return Program(
        hlo=hlo,
        model=step.model.variant,
        batch=batch,
        steps=budget.steps,
        parameters=sum(variable.shape.num_elements() for variable in trained),
        bytes={
            "parameters": _bytes(step.model.variables),
            "average": _bytes(averaged),
            "optimizer": _bytes(step.optimizer.variables),
            "batch": _bytes(examples.values()),
        },
        sources=_sources(graph),
    )


def training_step(
    experiment: Experiment, known: Facts, unset: bool = True, device: str = "tpu"
) -> tuple[TrainingStep, EpochBudget]:
    """The trainer's step on a kind of device, from the state of step 0, and the epoch budget.

    `unset` leaves large variables unwritten.
    """
    budget = experiment.budget(known.images)
    with tf.variable_creator_scope(_without_values) if unset else contextlib.nullcontext():
        state = states.create(experiment, known.classes, budget, device)
    return TrainingStep.of(experiment, state), budget


def example_batch(experiment: Experiment, known: Facts, batch: int) -> dict[str, tf.Tensor]:
    """Zeros of the shapes and dtypes of what the input gives a replica of `batch` images."""
    specs = experiment.data.training_batch(known.label_kind, batch, experiment.objective)
    return {name: tf.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}


def _without_values(next_creator, **settings):
    """Makes a variable whose memory nobody writes: a billion random weights would take a minute and 4 GB each time.

    Tracing needs shapes alone. Tensors' initial values, the optimiser's, are there already and are few.
    """
    shape, dtype = tf.TensorShape(settings.get("shape")), tf.as_dtype(settings.get("dtype") or tf.float32)
    if callable(settings["initial_value"]) and shape.is_fully_defined() and dtype.is_floating:
        settings["initial_value"] = lambda: tf.raw_ops.Empty(shape=shape.as_list(), dtype=dtype, init=False)
    return next_creator(**settings)


def _bytes(values) -> int:
    return sum(value.shape.num_elements() * value.dtype.size for value in values)


def _sources(graph: tf.Graph) -> dict[str, str]:
    """Operation name to `file:line function` of this project, for `graph` and the graphs of its functions.

    The gradient of an operation has the line of that operation, and says so.
    """
    found, gradients = {}, []
    pending = [graph]
    while pending:
        here = pending.pop()
        for operation in here.get_operations():
            frame = _frame(operation)
            if operation.name.startswith(_GRADIENT) and (frame is None or frame.filename == _STEP):
                gradients.append(operation.name)
            elif frame is not None:
                line = f"{os.path.relpath(frame.filename, os.path.dirname(_PROJECT))}:{frame.lineno} {frame.name}"
                found[operation.name] = line
        pending += [function.graph for function in here._functions.values() if hasattr(function, "graph")]
    scopes = {}
    for name, line in found.items():
        scopes.setdefault(os.path.dirname(name), line)
    for name in gradients:
        forward = os.path.dirname(name.removeprefix(_GRADIENT))
        convolution = f"{forward}/{os.path.basename(name).split('Backprop')[0]}"
        line = found.get(forward) or found.get(convolution) or scopes.get(forward)
        if line:
            found[name] = f"{line}, gradient"
    return found


def _frame(operation: tf.Operation) -> traceback.FrameSummary | None:
    """The innermost frame of this project in which the operation was made."""
    here = os.path.abspath(__file__)
    return next(
        (f for f in reversed(operation.traceback or ()) if f.filename.startswith(_PROJECT) and f.filename != here),
        None,
    )
