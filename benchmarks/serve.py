"""Speed of an exported model on this machine's CPU, against what it is made of.

    python benchmarks/serve.py              ratios, each beside its goal; about ten minutes on two cores

`naive` is the trained model, which standardises its kernels in each call; `forward` its inference form; `decoding` the
evaluation view of the files, and nothing else; `predict_bytes` the SavedModel's signature. `timm` is its model in eager
PyTorch, if benchmarks/requirements.txt is installed, and `onnx` the exported ONNX file in ONNX Runtime; these two have
processes of their own. All take turns; a ratio is the median of those within a turn, by clock and by processor time.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from pipeline import command_line

command_line.set_up_tensorflow()

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from benchmarks.augment import photograph
from benchmarks.step import PEER, Contestant, missing_peers
from benchmarks.turns import Times, measured
from pipeline.data import augment
from pipeline.model import nfnet
from pipeline.model.classifier import Classifier
from pipeline.serving import client, elementwise, folding, version_folder
from pipeline.serving.formats import onnx
from pipeline.serving.metadata import Origin
from pipeline.serving.servable import Servable, Settings

SIZES = {"nano": 96, "F0": 256}
BATCHES = (1, 8, 32)
CLASSES = 1000
ONNX = "onnx"
# Variant, batch, what is compared with what, and how many times as fast it should be. Where two are named, their times
# are added.
GOALS = [
    ("F0", 1, "forward", ["naive"], 1.7),
    ("F0", 8, "forward", ["naive"], 1.15),
    ("F0", 32, "predict_bytes", ["forward", "decoding"], 0.95),
    ("nano", 32, "predict_bytes", ["forward", "decoding"], 0.80),
    ("nano", 1, "predict_bytes", ["forward", "decoding"], 0.60),
    ("F0", 8, "forward", [PEER], 1.3),
    ("F0", 1, "forward", [ONNX], 1.1),
]
SECONDS_TO_FIRST_ANSWER = {"nano": 5, "F0": 15}


def trained(variant: str) -> Classifier:
    """A model whose variables are random, also those that training begins at 0 or 1."""
    model = nfnet.create(variant, CLASSES, target_device="any")
    generator = np.random.default_rng(0)
    for variable in model.variables:
        if not variable.name.startswith("linear") and "kernel" not in variable.name:
            variable.assign_add(generator.normal(0, 0.1, variable.shape).astype(np.float32))
    return model


def contestants(variant: str, directory: str) -> dict[str, Callable[[tf.Tensor, tf.Tensor], object]]:
    """Name to a function of encoded images, string [batch], and of their views, uint8 [batch, size, size, 3]."""
    size = SIZES[variant]
    model = trained(variant)
    settings = Settings([f"class {label}" for label in range(CLASSES)], size)
    path = version_folder.write(Servable(model, settings), settings, Origin(variant, 0), directory)
    predict = client.load(path).signatures["serving_default"]
    inference_form = folding.fold(model)
    onnx.write(inference_form, size, onnx_file(directory))
    view = tf.TensorSpec([size, size, 3], tf.uint8)

    @tf.function(autograph=False, reduce_retracing=True)
    def naive(images):
        return model(augment.normalize(images), training=False)

    @tf.function(autograph=False, reduce_retracing=True)
    def forward(images):
        return inference_form(images).logits

    @tf.function(autograph=False, reduce_retracing=True)
    def decoding(files):
        return elementwise.apply(lambda file: augment.evaluation_view(file, size), [files], view)[0]

    return {
        "naive": lambda files, views: naive(views),
        "forward": lambda files, views: forward(views),
        "decoding": lambda files, views: decoding(files),
        "predict_bytes": lambda files, views: predict(image_bytes=files),
    }


def measure(variant: str, directory: str, flags: argparse.Namespace, with_timm: bool) -> dict[int, dict[str, list]]:
    """Batch to contestant to its times, one for each turn."""
    functions = contestants(variant, directory)
    results: dict[int, dict[str, list]] = {}
    for batch in flags.batches:
        print(f"{variant}: batch {batch}", file=sys.stderr)
        files = tf.constant([photograph(seed) for seed in range(batch)])
        views = tf.stack([augment.evaluation_view(file, SIZES[variant]) for file in files])
        calls = {name: functools.partial(function, files, views) for name, function in functions.items()}
        for call in calls.values():
            call()
            call()
        number = max(1, round(flags.images / batch / (20 if variant == "F0" else 1)))
        times: dict[str, list] = {name: [] for name in calls}
        others = [process(name, variant, batch, number, directory) for name in ([PEER, ONNX] if with_timm else [ONNX])]
        for _ in range(flags.turns):
            for name, call in calls.items():
                times[name].append(measured(call, number))
            for other in others:
                other.take_turn()
        for other in others:
            other.close()
            times[other.name] = [Times(**turn) for turn in other.turns]
        results[batch] = times
    return results


def onnx_file(directory: str) -> str:
    """Where the ONNX file of the model is that is exported to `directory`."""
    return directory + onnx.SUFFIX


def process(name: str, variant: str, batch: int, calls: int, directory: str) -> Contestant:
    """A process of `PEER` or `ONNX`, which takes turns of `calls` calls."""
    program = "timm_forward.py" if name == PEER else "onnx_forward.py"
    words = [onnx_file(directory)] if name == ONNX else [f"dm_nfnet_{variant.lower()}", str(CLASSES)]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), program)
    return Contestant(name, [sys.executable, path, str(batch), str(SIZES[variant]), str(calls), *words])


def seconds_to_first_answer(directory: str) -> float:
    """From an imported TensorFlow to the first answer to a batch of 8, in a process of its own."""
    command = [sys.executable, os.path.abspath(__file__), f"--first_answer={directory}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def first_answer(directory: str) -> None:
    files = tf.constant([photograph(seed) for seed in range(8)])
    start = time.perf_counter()
    client.load(directory).signatures["serving_default"](image_bytes=files)
    print(time.perf_counter() - start)


def ratio(times: Mapping[str, list[Times]], name: str, others: list[str], what: str) -> float:
    """How many times as fast `name` is as `others` one after another: the median over turns."""
    turns = zip(times[name], *(times[other] for other in others), strict=True)
    return statistics.median(sum(getattr(t, what) for t in slow) / getattr(fast, what) for fast, *slow in turns)


def show(results: Mapping[str, Mapping[int, Mapping[str, list[Times]]]], first: Mapping[str, float]) -> None:
    """Prints milliseconds, ratios and goals."""
    milliseconds = Table(title="Milliseconds a call, by the clock / of processor time; medians of turns")
    names = list(dict.fromkeys(name for by_batch in results.values() for times in by_batch.values() for name in times))
    for column in ("", "batch", *names):
        milliseconds.add_column(column, justify="right" if column else "left")
    for variant, by_batch in results.items():
        for batch, times in by_batch.items():
            cells = [_both(times[name]) if name in times else "" for name in names]
            milliseconds.add_row(f"{variant}, {SIZES[variant]} pixels", str(batch), *cells)
    goals = Table(title="Times as fast: the goal, by the clock, by processor time")
    for column in ("", "goal", "clock", "processor"):
        goals.add_column(column, justify="right" if column else "left")
    for variant, batch, name, others, goal in GOALS:
        times = results.get(variant, {}).get(batch, {})
        if not all(each in times for each in (name, *others)):
            continue
        found = [f"{ratio(times, name, others, what):.2f}" for what in ("wall", "processor")]
        goals.add_row(f"{variant}, batch {batch}: {name} over {' + '.join(others)}", f"{goal:.2f}", *found)
    console = Console(width=110)
    console.print(milliseconds)
    console.print(goals)
    for variant, seconds in first.items():
        goal = SECONDS_TO_FIRST_ANSWER[variant]
        print(f"{variant}: {seconds:.1f} s to load and answer a first batch of 8, goal {goal} s.")


def _both(times: list[Times]) -> str:
    wall, processor = (statistics.median(getattr(t, what) for t in times) for what in ("wall", "processor"))
    return f"{wall:.1f} / {processor:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(SIZES), help="some of nano,F0")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=list(BATCHES))
    parser.add_argument("--images", type=int, default=320, help="of a turn for nano; F0 takes a twentieth")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--first_answer", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.first_answer:
        return first_answer(flags.first_answer)
    missing = missing_peers()
    results, first = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for variant in flags.variants:
            exported = os.path.join(directory, variant)
            results[variant] = measure(variant, exported, flags, with_timm=not missing and variant == "F0")
            first[variant] = seconds_to_first_answer(exported)
    show(results, first)


if __name__ == "__main__":
    main()
