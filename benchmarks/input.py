"""Speed and memory of the trainer's input, against its limit and against how reference trainers read.

    python benchmarks/input.py              a table; about ten minutes on two cores

It makes its own record sets of JPEGs, of 500 x 375 pixels and of 120 x 90. Variants take turns, each turn with a
pipeline of its own whose buffers are filled before the clock starts; the median of their turns counts, and of the
ratios within each turn, which other work on the machine disturbs least. Memory is measured in a process for each
variant: its peak, less what TensorFlow and the first operations take. `plain` is the input of the reference trainers:
TFRecordDataset under a parallel interleave, a shuffle buffer, the same map. `limit` has all files in memory, in no
order.
"""

import argparse
import io
import json
import operator
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.augment import LAYERS, MAGNITUDE, photograph, with_garden
from pipeline.data import manifest, reader, record, shard
from pipeline.data import order as orders
from pipeline.data.augment import PARALLEL_CALLS, Augmentation, normalize
from pipeline.data.input import View
from pipeline.data.randaugment import RandAugment

SHUFFLE_BUFFER = 10_000
SHARDS = 16
DISTINCT = 64
SMALL = "small"  # folder of the record set of small images


def small_photograph(seed: int) -> bytes:
    """A JPEG of 5 kB, where what is done for each record counts more than its bytes."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photograph(seed))).resize((120, 90)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make(directory: str, examples: int, photograph: Callable[[int], bytes] = photograph) -> None:
    """Writes a record set of `examples` records, of which every 64th has the same image."""
    files = [photograph(seed) for seed in range(DISTINCT)]
    os.makedirs(directory, exist_ok=True)
    shards, ids = [], []
    for number, part in enumerate(np.array_split(np.arange(examples), SHARDS)):
        records = []
        for i in part.tolist():
            ids.append(record.record_id(str(i)))
            values = {"image": files[i % DISTINCT], "key": str(i), "id": ids[-1], "label": i % 1000}
            records.append(record.serialize(values, record.SINGLE_LABEL))
        name = shard.shard_name("photographs", "train", number, SHARDS)
        index, sha256 = shard.write_shard(os.path.join(directory, name), records)
        shards.append(manifest.Shard(name, len(records), int(index[-1]), sha256))
    split = manifest.Split(examples, examples, {}, manifest.checksum(ids), tuple(shards))
    classes = tuple(str(i) for i in range(1000))
    manifest.write(manifest.Manifest("photographs", classes, record.SINGLE_LABEL, {"train": split}), directory)


def make_large(directory: str, source: str, copies: int) -> None:
    """A record set that lists every shard of `source` `copies` times, as hard links."""
    small = manifest.read(source)
    os.makedirs(directory, exist_ok=True)
    total, shards = copies * SHARDS, []
    for number in range(total):
        original = small.splits["train"].shards[number % SHARDS]
        name = shard.shard_name("photographs", "train", number, total)
        for path in (shard.index_path, str):
            os.link(path(os.path.join(source, original.file)), path(os.path.join(directory, name)))
        shards.append(manifest.Shard(name, original.examples, original.bytes, original.sha256))
    examples = sum(each.examples for each in shards)
    split = manifest.Split(examples, examples, {}, "0" * 16, tuple(shards))
    manifest.write(manifest.Manifest("large", small.classes, record.SINGLE_LABEL, {"train": split}), directory)


def with_seed(example: dict) -> dict:
    """What the augmentation takes: the fields of a record and a seed from its id."""
    seed = tf.random.experimental.stateless_fold_in(tf.constant([0, 1], tf.int64), example["id"])
    return {"image": example["image"], "seed": tf.cast(seed, tf.int32)}


def views(size: int) -> dict[str, Callable[[tf.data.Dataset], tf.data.Dataset]]:
    """Stage -> what makes images of records."""

    def seeded(records):
        return records.map(with_seed, num_parallel_calls=PARALLEL_CALLS)

    def augmented(augmentation):
        return lambda records: augmentation.examples(seeded(records), size)

    return {
        "records": lambda records: records.map(operator.itemgetter("image"), num_parallel_calls=PARALLEL_CALLS),
        "crop": augmented(Augmentation()),
        "crop, floats": lambda records: augmented(Augmentation())(records).map(
            lambda example: normalize(example["image"]), num_parallel_calls=PARALLEL_CALLS
        ),
        "crop, RandAugment": augmented(Augmentation(randaugment=RandAugment(LAYERS, MAGNITUDE))),
        "crop, the Garden's RandAugment": lambda records: seeded(records).map(
            with_garden(size), num_parallel_calls=PARALLEL_CALLS
        ),
    }


def ours(directory: str, view: View, batch: int, **sizes: Any) -> tf.data.Dataset:
    """The trainer's input."""
    records = reader.RecordSet(directory, "train")
    return reader.dataset(records, orders.EpochBudget(records.order(batch, seed=0, **sizes), batch, 100), view)


def plain(directory: str, view: View, batch: int) -> tf.data.Dataset:
    """The reference trainers' input."""
    paths = sorted(tf.io.gfile.glob(os.path.join(directory, "*.tfrecord-?????-of-?????")))
    records = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    records = records.interleave(
        tf.data.TFRecordDataset, cycle_length=16, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False
    ).shuffle(SHUFFLE_BUFFER)

    def parse(serialized):
        example = record.parse(serialized[None], tf.constant([""]), record.SINGLE_LABEL)
        return {name: value[0] for name, value in example.items()}

    examples = view(records.map(parse, num_parallel_calls=tf.data.AUTOTUNE))
    return examples.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def limit(directory: str, view: View, batch: int) -> tf.data.Dataset:
    """No reading at all."""
    files = [photograph(seed) for seed in range(DISTINCT)]
    examples = {"image": files, "id": np.arange(DISTINCT)}
    return view(tf.data.Dataset.from_tensor_slices(examples).repeat()).batch(batch, drop_remainder=True).prefetch(2)


VARIANTS = {
    "reader alone": (ours, "records"),
    "reader alone: plain": (plain, "records"),
    "reader alone, 5 kB images": (ours, "records"),
    "reader alone, 5 kB images: plain": (plain, "records"),
    "decode and random crop": (ours, "crop"),
    "decode and random crop: plain": (plain, "crop"),
    "decode and random crop: limit": (limit, "crop"),
    "decode and random crop: floats, normalised on the host": (ours, "crop, floats"),
    "with RandAugment": (ours, "crop, RandAugment"),
    "with RandAugment: plain": (plain, "crop, RandAugment"),
    "with RandAugment: limit": (limit, "crop, RandAugment"),
    "with the Model Garden's RandAugment": (ours, "crop, the Garden's RandAugment"),
}
TAKES_A_MULTIPLE = {"records": 8, "crop, the Garden's RandAugment": 0.5}  # of --images; others once


def turn(name: str, flags: argparse.Namespace) -> tuple[float, float]:
    """Images a second of one turn, and milliseconds of processor time an image.

    The first batches fill the buffers and do not count. On a machine with other work, processor time is the fairer.
    """
    make_dataset, stage = VARIANTS[name]
    sizes = {"block": flags.block, "window": flags.window} if make_dataset is ours else {}
    directory = os.path.join(flags.directory, SMALL) if "5 kB" in name else flags.directory
    iterator = iter(make_dataset(directory, views(flags.size)[stage], flags.batch, **sizes))
    for _ in range(4):
        next(iterator)
    batches = max(2, round(flags.images * TAKES_A_MULTIPLE.get(stage, 1) / flags.batch))
    started, processor_started = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(iterator)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor_started
    return batches * flags.batch / seconds, 1000 * processor / (batches * flags.batch)


def peak_memory(name: str, flags: argparse.Namespace) -> float:
    """Megabytes that a turn takes at its peak, in this process, beside what TensorFlow takes itself."""
    warm_up = tf.data.Dataset.range(8).map(lambda i: i + 1, num_parallel_calls=2).batch(2)
    sum(int(batch[0]) for batch in warm_up)
    tf.io.decode_jpeg(photograph(0))
    before = _peak()
    turn(name, flags)
    return (_peak() - before) / 1000


def _peak() -> int:
    """Kilobytes of this process at its peak. (`getrusage` begins with the peak of the process that started it.)"""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


def seconds_to_first_batch(directory: str, share: float, flags: argparse.Namespace) -> tuple[float, float]:
    """From nothing open to the first batch, at `share` of the first epoch: seconds and seconds of processor time."""
    started, processor_started = time.perf_counter(), time.process_time()
    records = reader.RecordSet(directory, "train")
    budget = orders.EpochBudget(records.order(flags.batch, seed=0), flags.batch, 1)
    view = views(flags.size)["crop"]
    next(iter(reader.dataset(records, budget, view, first_step=int(budget.steps * share))))
    return time.perf_counter() - started, time.process_time() - processor_started


def measured_memory(name: str, flags: argparse.Namespace) -> float:
    """`peak_memory` in a process of its own."""
    command = [sys.executable, os.path.abspath(__file__), f"--memory_of={name}"]
    command += [f"--{key}={getattr(flags, key)}" for key in ("directory", "batch", "size", "images", "block", "window")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=12_000, help="records of the set")
    parser.add_argument("--images", type=int, default=1024, help="images a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--block", type=int, default=orders.Order.block, help="see pipeline/data/order.py")
    parser.add_argument("--window", type=int, default=orders.Order.window)
    parser.add_argument("--directory", help="where the record set is, or is made; a temporary folder if not given")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.memory_of:
        print(json.dumps(peak_memory(flags.memory_of, flags)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        flags.directory = flags.directory or os.path.join(temporary, "records")
        if not os.path.exists(os.path.join(flags.directory, manifest.FILE)):
            make(flags.directory, flags.records)
            make(os.path.join(flags.directory, SMALL), flags.records, small_photograph)
        report(flags)
        large = os.path.join(flags.directory, "..", f"large{os.getpid()}")
        try:
            make_large(large, flags.directory, 600)
            report_resume(large, flags)
        finally:
            shutil.rmtree(large, ignore_errors=True)


def report(flags: argparse.Namespace) -> None:
    """Measures and prints speed and memory."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    processor: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(flags.turns):
        for name in VARIANTS:
            images, milliseconds = turn(name, flags)
            rates[name].append(images)
            processor[name].append(milliseconds)
    memory = {name: [measured_memory(name, flags)] for name in VARIANTS}
    table = Table(title=f"batch {flags.batch}, {flags.size} pixels, {os.cpu_count()} cores, median of {flags.turns}")
    for column in ("", "images/s", "of plain", "CPU ms/image", "of plain", "memory, MB", "of plain"):
        table.add_column(column, justify="right" if column else "left")
    for name in VARIANTS:
        base = f"{name.split(':')[0]}: plain"
        measured = (rates, processor, memory)
        shares = [f"{ratio(x[name], x[base]):.2f}" if base in VARIANTS else "" for x in measured]
        values = [
            f"{statistics.median(x[name]):{form}}" for x, form in zip(measured, (",.0f", ".3f", ",.0f"), strict=True)
        ]
        table.add_row(name, *(cell for pair in zip(values, shares, strict=True) for cell in pair))
    Console(width=110).print(table)
    sys.stdout.flush()
    against = ratio(rates["with RandAugment"], rates["with the Model Garden's RandAugment"])
    spent = ratio(processor["with the Model Garden's RandAugment"], processor["with RandAugment"])
    print(f"Our RandAugment: {against:.2f} times the Model Garden's images/s, {spent:.2f} times less processor time.")


def ratio(values: list[float], others: list[float]) -> float:
    """The median of the ratios of values measured in the same turn."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def report_resume(large: str, flags: argparse.Namespace) -> None:
    """Measures and prints the seconds to the first batch."""
    shares = (0.0, 0.01, 0.5, 0.99)
    seconds: dict[float, list[tuple[float, float]]] = {share: [] for share in shares}
    for _ in range(flags.turns):
        for share in shares:
            seconds[share].append(seconds_to_first_batch(large, share, flags))
    examples = manifest.read(large).splits["train"].written
    print(f"Seconds to the first batch of {examples:,} records in {600 * SHARDS:,} shards:")
    for share in shares:
        wall, processor = zip(*seconds[share], strict=True)
        print(
            f"  at {share:4.0%} of an epoch: {statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f}), "
            f"processor time {statistics.median(processor):.2f}"
        )


if __name__ == "__main__":
    main()
