"""Speed of augmentation alone, against the Model Garden's RandAugment in the same place.

    python benchmarks/augment.py            images/s of each stage, for 500 x 375 JPEGs to 224 pixels

Files are in memory and every variant runs in the same tf.data map on all cores; the variants take turns, and the
best of their turns counts, so that a busy machine harms none of them more.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from official.vision.ops import augment as garden
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.data.augment import Augmentation
from pipeline.data.mixing import Mixing
from pipeline.data.randaugment import RandAugment

LAYERS, MAGNITUDE = 4, 15


def photograph(seed: int) -> bytes:
    """A JPEG of quality 90 with detail at every scale, as photographs have; about 50 kB."""
    random, (width, height) = np.random.default_rng(seed), (500, 375)
    values = np.full((height, width, 3), 128.0)
    for scale in (2, 4, 8, 16, 32, 64, 128):
        noise = random.normal(0, 1, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        layer = [
            np.asarray(Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        values += np.stack(layer, -1) * 3.5 * scale**0.6
    buffer = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def with_garden(size: int) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """Our crop of an encoded example, then the Model Garden's RandAugment."""
    policy, crop = garden.RandAugment(LAYERS, float(MAGNITUDE)), Augmentation().crop

    def augmented(example: dict[str, tf.Tensor]) -> tf.Tensor:
        return policy.distort(crop(example["image"], example["seed"], size))

    return augmented


def variants(size: int) -> dict[str, Callable[[tf.data.Dataset], tf.data.Dataset]]:
    """Name -> what turns encoded examples into training images."""
    ours = RandAugment(LAYERS, MAGNITUDE)

    def mapped(function):
        return lambda examples: examples.map(function, num_parallel_calls=tf.data.AUTOTUNE)

    return {
        "decode the whole image": mapped(lambda example: tf.io.decode_jpeg(example["image"], channels=3)),
        "random crop, bicubic resize": lambda examples: Augmentation().examples(examples, size),
        "crop, the Model Garden's RandAugment": mapped(with_garden(size)),
        "crop, RandAugment": lambda examples: Augmentation(randaugment=ours).examples(examples, size),
        "crop, mixup and cutmix, RandAugment": lambda examples: Augmentation(
            randaugment=ours, mixing=Mixing()
        ).examples(examples, size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="images a turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    flags = parser.parse_args()

    files = [photograph(seed) for seed in range(64)]
    number = np.arange(flags.images)
    examples = tf.data.Dataset.from_tensor_slices(
        {
            "image": [files[i % len(files)] for i in number],
            "seed": np.stack([number, number], 1).astype(np.int32),
            "labels": number[:, None],
            "label_weights": np.ones((flags.images, 1), np.float32),
            "weight": np.ones(flags.images, np.float32),
        }
    )
    datasets = {name: apply(examples) for name, apply in variants(flags.size).items()}
    best = dict.fromkeys(datasets, float("inf"))
    for _ in range(flags.turns):
        for name, dataset in datasets.items():
            started = time.perf_counter()
            dataset.reduce(0, lambda count, _: count + 1).numpy()
            best[name] = min(best[name], time.perf_counter() - started)

    table = Table(title=f"{flags.size} pixels, RandAugment {LAYERS} x {MAGNITUDE}, {os.cpu_count()} cores")
    table.add_column("stage")
    table.add_column("images/s", justify="right")
    table.add_column("against the Garden", justify="right")
    garden_seconds = best["crop, the Model Garden's RandAugment"]
    for name, seconds in best.items():
        table.add_row(name, f"{flags.images / seconds:,.0f}", f"{garden_seconds / seconds:.2f}")
    Console().print(table)
    print(f"JPEGs of {np.mean([len(file) for file in files]) / 1000:.0f} kB on average")


if __name__ == "__main__":
    main()
