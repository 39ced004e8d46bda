"""Speed of a full training step on whatever device JAX has, a GPU or else the CPU: the trainer's own step, as HLO.

    python benchmarks/gpu.py trace --gin_file=gin/f0_jft.gin --batch=64 --output=runs/step.npz
    python benchmarks/gpu.py time runs/step.npz

`trace` takes TensorFlow and no JAX, `time` takes JAX and no TensorFlow: the file may travel to a machine with a GPU
that has JAX alone. `trace --values` also keeps the variables' values and the results of TensorFlow's own step,
which `time` then compares: for small models, whose file stays small.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # where libtpu is installed, JAX looks for a TPU's host for minutes

import numpy as np

WARM_UP = 3  # steps before those that count


def trace(arguments: argparse.Namespace) -> None:
    """Writes the step of an experiment, and with --values arguments and results, to an .npz file."""
    import tensorflow as tf

    from pipeline import registry
    from pipeline.tpu import program

    experiment = registry.configured(arguments.gin_file, arguments.gin_param)
    dataset = program.dataset_info(experiment, arguments.images)
    step, _ = program.training_step(experiment, dataset, unset=not arguments.values, device="gpu")
    batch = program.example_batch(experiment, dataset, arguments.batch)
    if arguments.values:
        random = np.random.default_rng(0)
        batch["image"] = tf.constant(random.normal(size=batch["image"].shape), tf.float32)
        batch["labels"] = tf.constant(random.integers(0, dataset.classes, batch["labels"].shape), tf.int64)
        batch |= {name: tf.ones_like(batch[name]) for name in ("label_weights", "weight")}
    compiled = tf.function(step.__call__, jit_compile=True, autograph=False)
    stored: dict[str, Any] = {
        "hlo": np.frombuffer(compiled.experimental_get_compiler_ir(batch)(stage="hlo_serialized"), np.uint8)
    }
    if arguments.values:
        concrete = compiled.get_concrete_function(batch)
        handles = {id(variable.handle): variable for variable in concrete.variables}
        captured = [handles[id(handle)] for handle in concrete.captured_inputs]
        inputs = [*(batch[name] for name in sorted(batch)), *captured]
        stored |= {f"argument{i}": value.numpy() for i, value in enumerate(inputs)}
        outputs = tf.function(step.__call__, autograph=False)(batch)
        stored |= {f"output{i}": value.numpy() for i, value in enumerate(outputs)}
        stored |= {f"after{len(batch) + i}": variable.numpy() for i, variable in enumerate(captured)}
    what = {"model": step.model.name, "batch": arguments.batch, "precision": experiment.precision}
    np.savez(arguments.output, what=json.dumps(what), **stored)
    print(f"{arguments.output}: {os.path.getsize(arguments.output) / 1e6:.1f} MB, {what}")


def measure(arguments: argparse.Namespace) -> None:
    """Compiles the step for JAX's default device, runs it, prints the median of its speed."""
    import jax

    step, what, stored = _load(arguments.step)
    inputs = step.put(stored)
    if "output0" in stored:
        _compare(step, inputs, stored)
        inputs = step.put(stored)
    seconds = []
    for _ in range(WARM_UP + arguments.steps):
        start = time.perf_counter()
        outputs = step(inputs)
        jax.block_until_ready(outputs)
        seconds.append(time.perf_counter() - start)
        inputs = step.next_inputs(inputs, outputs)
    median = statistics.median(seconds[WARM_UP:])
    spread = min(seconds[WARM_UP:]) / median, max(seconds[WARM_UP:]) / median
    print(
        f"{what['model']}, {what['batch']} images, {what['precision']}, on {step.device.device_kind}: "
        f"{what['batch'] / median:,.1f} images/s (median of {arguments.steps} steps of {median * 1e3:.1f} ms, "
        f"{spread[0]:.2f} to {spread[1]:.2f} of it)"
    )


class Step:
    """A compiled step: a function of the batch's tensors, in the order of their names, and the variables."""

    def __init__(self, hlo: bytes):
        import jax
        from jax.extend import backend

        from pipeline.tpu.compiler import compile_arguments

        self.device = jax.devices()[0]
        computation = _computation(hlo)
        header = computation.as_hlo_text().split("\n", 1)[0]
        # Variables: which argument a result takes the place of.
        pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header)
        self._replaced = {int(output): int(argument) for output, argument in pairs}
        self._shapes = computation.program_shape().parameter_shapes()
        self._executable = backend.get_backend().compile_and_load(*compile_arguments(hlo, [self.device]))

    def put(self, stored: Mapping[str, np.ndarray]) -> list:
        """The arguments, on the device: those of `stored`, or small random numbers (zeros where integer)."""
        import jax

        random, values = np.random.default_rng(0), []
        for i, shape in enumerate(self._shapes):
            dimensions, dtype = shape.dimensions(), shape.numpy_dtype()
            if f"argument{i}" in stored:
                value = stored[f"argument{i}"]
            elif np.issubdtype(dtype, np.integer):
                value = np.zeros(dimensions, dtype)
            else:
                value = (0.05 * random.standard_normal(dimensions, np.float32)).astype(dtype)
            values.append(jax.device_put(value, self.device))
        return values

    def __call__(self, inputs: list) -> list:
        """Runs one step; arguments that results replace are gone afterwards."""
        return [each[0] for each in self._executable.execute_sharded(inputs).disassemble_into_single_device_arrays()]

    def next_inputs(self, inputs: list, outputs: list) -> list:
        """The arguments of the next step: the same batch, and the variables as the step left them."""
        replaced = {argument: outputs[output] for output, argument in self._replaced.items()}
        return [replaced.get(i, value) for i, value in enumerate(inputs)]


def _computation(hlo: bytes) -> Any:
    """The HLO module with its text and its parameters' shapes.

    Private: JAX reads serialised HLO in no public function.
    """
    from jax._src.lib import xla_client

    return xla_client.XlaComputation(hlo)


def _load(path: str) -> tuple[Step, dict, np.lib.npyio.NpzFile]:
    import jax

    stored = np.load(path)
    what = json.loads(str(stored["what"]))
    jax.config.update("jax_enable_x64", True)  # or JAX would make 32-bit integers of the step's 64-bit ones
    return Step(stored["hlo"].tobytes()), what, stored


def _compare(step: Step, inputs: list, stored: np.lib.npyio.NpzFile) -> None:
    """Prints how far the results are from TensorFlow's; raises where they are not the same function's."""
    outputs = step(inputs)
    after = step.next_inputs(inputs, outputs)
    worst = 0.0
    for name in stored.files:
        if name.startswith(("output", "after")):
            actual = outputs[int(name[6:])] if name.startswith("output") else after[int(name[5:])]
            expected = stored[name].astype(np.float64)
            scale = max(np.abs(expected).max(initial=0.0), 1e-3)
            worst = max(worst, float(np.abs(np.asarray(actual, np.float64) - expected).max(initial=0.0) / scale))
    print(f"Largest difference to TensorFlow's step, by each tensor's largest value: {worst:.1e}")
    if not worst < 0.05:
        raise SystemExit("The results are not TensorFlow's.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    one = actions.add_parser("trace", help="an experiment to a file")
    one.add_argument("--gin_file", action="append", required=True, help="may be repeated, later ones win")
    one.add_argument("--gin_param", action="append", default=[], help="NAME=VALUE over the files; may be repeated")
    one.add_argument("--batch", type=int, default=64, help="images of the step")
    one.add_argument("--images", type=int, help="of an epoch, where neither records nor gin files have the number")
    one.add_argument("--values", action="store_true", help="keep values, to compare results")
    one.add_argument("--output", required=True, help="file to write, .npz")
    one.set_defaults(action=trace)
    one = actions.add_parser("time", help="a file to images/s")
    one.add_argument("step", help="file of `trace`")
    one.add_argument("--steps", type=int, default=20, help="steps that count")
    one.set_defaults(action=measure)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
