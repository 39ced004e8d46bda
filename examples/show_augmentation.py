"""Draws docs/figures/augmentation.png: every RandAugment operation, and what each kind of augmentation does.

python examples/show_augmentation.py
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import Image

from examples import make_demo_images
from pipeline.data.augment import Augmentation
from pipeline.data.mixing import Mixing
from pipeline.data.randaugment import OPERATIONS, RandAugment

PICTURE = "docs/figures/augmentation.png"
SIZE = 224
CLASSES = ("star-dots", "ring-checks", "arrow-stripes", "cross-wedges", "crescent-circles", "square-plain")
COLUMNS = 8
ROWS = {
    "random crop, flip": Augmentation(),
    "RandAugment 4 x 5": Augmentation(randaugment=RandAugment(4, 5)),
    "RandAugment 4 x 15": Augmentation(randaugment=RandAugment(4, 15)),
    "mixup (alpha 0.2)": Augmentation(mixing=Mixing(cutmix=False)),
    "cutmix": Augmentation(mixing=Mixing(mixup_alpha=0)),
    "half mixup, half\ncutmix, then\nRandAugment 4 x 5": Augmentation(mixing=Mixing(), randaugment=RandAugment(4, 5)),
    "random erasing": Augmentation(erasing=1.0),
    "repeated: 4 views\nof each example": Augmentation(repeats=4),
}


def examples() -> tf.data.Dataset:
    """Encoded demo images of several classes, as the reader would give them."""
    names = [CLASSES[i % len(CLASSES)] for i in range(COLUMNS)]
    images = [make_demo_images.draw(name, np.random.default_rng([7, i])) for i, name in enumerate(names)]
    return tf.data.Dataset.from_tensor_slices(
        {
            "image": [tf.io.encode_png(image).numpy() for image in images],
            "seed": np.stack([np.arange(COLUMNS), np.full(COLUMNS, 5)], 1).astype(np.int32),
            "labels": np.arange(COLUMNS)[:, None],
            "label_weights": np.ones((COLUMNS, 1), np.float32),
            "weight": np.ones(COLUMNS, np.float32),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the sheet, and prints where it is."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    whole = Augmentation(min_area=1.0, flip=False)
    original = next(whole.examples(examples(), SIZE).as_numpy_iterator())["image"]
    policy, random = RandAugment(1, 15), tf.constant([0.3, 0.7, 0.5])
    panels = [(name, policy.operation(name)(original, random)) for name in OPERATIONS]
    labels = ["each operation at\nmagnitude 15", ""]
    for label, augmentation in ROWS.items():
        labels.append(label)
        for view in augmentation.examples(examples(), SIZE).take(COLUMNS).as_numpy_iterator():
            shares = view["label_weights"]
            caption = "" if len(shares) == 1 else " + ".join(f"{share:.0%}" for share in shares)
            panels.append((caption, view["image"]))

    figure, axes = plt.subplots(len(labels), COLUMNS, figsize=(12, 15), layout="constrained")
    for axis, (title, image) in zip(axes.flat, panels, strict=True):
        axis.imshow(image)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=70)
    sheet = Image.open(buffer).convert("RGB")
    sheet.quantize(palette=sheet.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(PICTURE, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main()
