"""Speed of a full training step on this machine's CPU: our two implementations beside timm's, measured in one run.

    python benchmarks/step.py [--turns=7] [--steps=4] [--batch=8] [--size=192] [--variant=F0] [--threads=N]

A step is forward, loss, backward, adaptive gradient clipping and SGD with Nesterov momentum, on the same random
images. Each contestant is a process of its own with the same number of threads. They run one at a time, in turns
of a few steps, so that other load meets all of them; medians over turns are compared. The first step, which traces and
compiles, is timed by itself: it says after how many steps the faster implementation repays its compilation. timm's
model is in PyTorch, eager, channels last; both are no requirement of this project: install benchmarks/requirements.txt
to compare.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from pipeline import command_line

command_line.set_up_tensorflow()

from pipeline.model import variants

OURS = ("plain", "cpu")  # implementations of `nfnet.create`
PEER = "timm"
PRECISIONS = ("float32", "bfloat16")
GOAL = 1.25
CLASSES, LEARNING_RATE = 1000, 0.1
WARM_UP = 2  # steps of each process before its first turn, of which the first traces and compiles


def our_step(implementation: str, arguments: argparse.Namespace) -> Callable[[], float]:
    """A function that takes one step of our model and returns its loss."""
    import tensorflow as tf
    import tf_keras

    from pipeline.model import nfnet
    from pipeline.train import optimizer

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    tf_keras.mixed_precision.set_global_policy("float32" if arguments.precision == "float32" else "mixed_bfloat16")
    model = nfnet.create(arguments.variant, CLASSES, implementation=implementation)
    descent = optimizer.SGD(LEARNING_RATE)
    descent.build(model.trainable_variables)
    images = tf.random.stateless_normal([arguments.batch, arguments.size, arguments.size, 3], [0, 0])
    labels = tf.range(arguments.batch) % CLASSES

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        descent.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return lambda: float(step())


def timm_step(arguments: argparse.Namespace) -> Callable[[], float]:
    """A function that takes one step of timm's model and returns its loss."""
    torch, timm = import_timm()
    from timm.utils.agc import adaptive_clip_grad

    torch.set_num_threads(arguments.threads)
    name = f"dm_nfnet_{arguments.variant.lower()}"
    model = timm.create_model(name, num_classes=CLASSES).to(memory_format=torch.channels_last).train()
    head = set(model.head.parameters())
    clipped = [parameter for parameter in model.parameters() if parameter not in head]
    descent = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=2e-5, fused=True
    )
    shape = arguments.batch, 3, arguments.size, arguments.size
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(arguments.batch) % CLASSES
    precision = (
        contextlib.nullcontext
        if arguments.precision == "float32"
        else lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )

    def step():
        with precision():
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        descent.zero_grad(set_to_none=True)
        loss.backward()
        adaptive_clip_grad(clipped, clip_factor=0.01, eps=1e-3)
        descent.step()
        return loss.item()

    return step


def import_timm() -> tuple[types.ModuleType, types.ModuleType]:
    """PyTorch and timm."""
    import torch

    _let_torchvision_load(torch)
    import timm

    return torch, timm


def missing_peers() -> list[str]:
    """Which packages timm's contestant lacks; says how to install them."""
    missing = [name for name in ("torch", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"Not installed: {' and '.join(missing)}. Ours alone is measured; to compare with timm: "
            "pip install -r benchmarks/requirements.txt",
            file=sys.stderr,
        )
    return missing


def _let_torchvision_load(torch: types.ModuleType) -> None:
    """timm imports torchvision, whose operators are missing where its build is for another device than PyTorch's.

    None of them is used here: declared without a kernel, they let the import succeed.
    """
    with contextlib.suppress(ImportError, RuntimeError):
        import torchvision  # noqa: F401

        return
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)  # what it declares goes when it does


_KEPT: list[object] = []


def work(arguments: argparse.Namespace) -> None:
    """A contestant's process: for each line on standard input takes some steps and prints how long they took."""
    # What libraries print goes elsewhere, results alone to the parent.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = timm_step(arguments) if arguments.worker == PEER else our_step(arguments.worker, arguments)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(WARM_UP - 1):
        step()
    print(json.dumps({"first_step": first}), file=results, flush=True)
    for _ in sys.stdin:
        start, start_processor = time.perf_counter(), time.process_time()
        losses = [step() for _ in range(arguments.steps)]
        seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
        if not all(loss == loss for loss in losses):
            raise SystemExit(f"The loss of {arguments.worker} is not a number.")
        images = arguments.steps * arguments.batch
        result = {"images_per_second": images / seconds, "images_per_core_second": images / processor}
        print(json.dumps(result), file=results, flush=True)


class Contestant:
    """A process that takes a turn when asked: for a line on its standard input it prints a JSON object."""

    def __init__(self, name: str, command: list[str]):
        self.name = name
        self.turns: list[dict[str, float]] = []
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.first_step = self._answer()["first_step"]  # seconds

    def take_turn(self) -> None:
        print("go", file=self._requests, flush=True)
        self.turns.append(self._answer())

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def median(self, what: str) -> float:
        return statistics.median(turn[what] for turn in self.turns)

    def _answer(self) -> dict:
        line = self._answers.readline()
        if not line:
            raise SystemExit(f"The process of {self.name} ended early, with code {self._process.wait()}; see above.")
        return json.loads(line)


def measure(precision: str, names: list[str], arguments: argparse.Namespace) -> dict[str, Contestant]:
    """The contestants after their turns in this precision, their processes ended."""
    passed = ("variant", "batch", "size", "threads", "steps")
    flags = [f"--{name}={getattr(arguments, name)}" for name in passed]
    contestants = []
    for name in names:
        print(f"{precision}: {name} warms up", file=sys.stderr)
        worker = [f"--worker={name}", f"--precision={precision}"]
        contestants.append(Contestant(name, [sys.executable, os.path.abspath(__file__), *flags, *worker]))
    for turn in range(arguments.turns):
        print(f"{precision}: turn {turn + 1} of {arguments.turns}", file=sys.stderr)
        for contestant in contestants[turn % len(names) :] + contestants[: turn % len(names)]:
            contestant.take_turn()
    for contestant in contestants:
        contestant.close()
    return {contestant.name: contestant for contestant in contestants}


def report(precision: str, contestants: dict[str, Contestant], arguments: argparse.Namespace) -> None:
    """Prints the medians, and each one's speed over that of plain and of timm in the same turns."""
    from rich import box, console, table

    what = f"{arguments.variant}, {precision}, batch {arguments.batch}, {arguments.size} pixels"
    rows = table.Table(
        title=f"A training step: {what}, {arguments.threads} threads; medians of {arguments.turns} turns",
        box=box.SIMPLE,
    )
    rows.add_column("step")
    headings = ("first step, s", "images/s", "lowest", "highest", "images/core-s", f"/ {OURS[0]}", f"/ {PEER}")
    for heading in headings:
        rows.add_column(heading, justify="right")
    for name, contestant in contestants.items():
        speeds = [turn["images_per_second"] for turn in contestant.turns]
        numbers = [contestant.first_step, statistics.median(speeds), min(speeds), max(speeds)]
        numbers.append(contestant.median("images_per_core_second"))
        ratios = [_ratio(contestant, contestants.get(other)) for other in (OURS[0], PEER)]
        rows.add_row(name, *(f"{number:.2f}" for number in numbers), *ratios)
    console.Console(width=max(100, console.Console().width)).print(rows)
    plain, ours = (contestants[name] for name in OURS)
    print(f"{precision}: {OURS[1]} repays its compilation after {_steps_to_repay(plain, ours, arguments.batch)}")
    if PEER in contestants:
        print(
            f"{precision}: {OURS[1]} / {PEER} {_ratio(contestants[OURS[1]], contestants[PEER])}, goal {GOAL}",
            flush=True,
        )


def _steps_to_repay(plain: Contestant, ours: Contestant, batch: int) -> str:
    """After how many steps `ours` has taken less time than `plain`, by medians."""
    of_plain, of_ours = (batch / each.median("images_per_second") for each in (plain, ours))
    if of_ours >= of_plain:
        return "no number of steps"
    return f"{(ours.first_step - plain.first_step) / (of_plain - of_ours):,.0f} steps"


def _ratio(one: Contestant, other: Contestant | None) -> str:
    """The median over turns of the ratio of speeds within a turn."""
    if other is None:
        return ""
    pairs = zip(one.turns, other.turns, strict=True)
    return f"{statistics.median(a['images_per_second'] / b['images_per_second'] for a, b in pairs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="F0", help="of `nfnet.create`; timm has those of the published family")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--size", type=int, default=192, help="pixels a side")
    parser.add_argument("--turns", type=int, default=7, help="of each contestant")
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores where not given")
    parser.add_argument("--precision", choices=PRECISIONS, help="one of them alone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    missing = missing_peers()
    with_timm = not missing and arguments.variant not in variants.SMALL
    names = [*OURS, *([PEER] if with_timm else [])]
    precisions = [arguments.precision] if arguments.precision else PRECISIONS
    for precision in precisions:
        report(precision, measure(precision, names, arguments), arguments)


if __name__ == "__main__":
    main()
