"""Draws the demo images: two sets of labelled JPEG and PNG files, made from a seed alone.

    python examples/make_demo_images.py --output_dir=runs/demo/images --seed=0

    OUTPUT_DIR/pretrain/CLASS/NAME.jpg     44 classes, 190 images each
    OUTPUT_DIR/finetune/CLASS/NAME.jpg     10 other classes, 200 images each
    OUTPUT_DIR/demo_images.json            what was made; its presence says that the folder is whole

A class is a shape filled with a pattern, such as `star-dots`. Colour, place, size, angle, background and
clutter are random, so only the arrangement of edges tells the classes apart: a linear model on pixels
learns little, a small ConvNet much. The fine-tuning classes are shapes and patterns that pre-training has
seen, in pairs that it has not. Twelve files are broken on purpose, as some of any real folder are.
"""

import argparse
import io
import itertools
import os
import pathlib
import sys
import zlib

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import numpy as np
from PIL import Image

from examples import made_folder

MARKER = "demo_images.json"

# A shape is a function of (x, y) that is negative inside; it fills the disc of radius 1 around the origin.
# The unit is that radius, and slopes are near 1 at the outline, so that edges can be smoothed in pixels.


def _star(x, y):
    angle = np.arctan2(y, x) % (2 * np.pi / 5) - np.pi / 5
    return (np.hypot(x, y) - 0.45 - 0.55 * (np.abs(angle) / (np.pi / 5)) ** 1.5) * 0.7


def _cross(x, y):
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 0.95, short - 0.32)


def _arrow(x, y):
    head = np.maximum(0.7 * np.abs(y) + 0.7 * x - 0.66, -x)
    shaft = np.maximum(np.abs(y) - 0.3, np.abs(x + 0.4) - 0.55)
    return np.minimum(head, shaft)


SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) - 0.3,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.72,
    "triangle": lambda x, y: np.maximum(np.maximum(0.866 * x + 0.5 * y, 0.5 * y - 0.866 * x), -y) - 0.5,
    "star": _star,
    "cross": _cross,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.7 - np.hypot(x - 0.5, y)),
    "half": lambda x, y: np.maximum(np.hypot(x, y + 0.35) - 0.95, -0.35 - y),
    "arrow": _arrow,
}

# A pattern is a function of (x, y) in the same coordinates: positive where the first of two colours goes.
PATTERNS = {
    "plain": lambda x, y: np.ones_like(x),
    "stripes": lambda x, y: np.sin(11 * x),
    "checks": lambda x, y: np.sin(8 * x) * np.sin(8 * y),
    "dots": lambda x, y: 0.35 - np.hypot((2.1 * x) % 1 - 0.5, (2.1 * y) % 1 - 0.5),
    "circles": lambda x, y: np.sin(13 * np.hypot(x, y)),
    "wedges": lambda x, y: np.sin(6 * np.arctan2(y, x)),
}

FINETUNE_CLASSES = (
    "arrow-wedges",
    "crescent-checks",
    "cross-plain",
    "disc-stripes",
    "half-circles",
    "ring-plain",
    "square-dots",
    "star-stripes",
    "triangle-checks",
    "triangle-circles",
)
PRETRAIN_CLASSES = tuple(
    sorted({f"{shape}-{pattern}" for shape in SHAPES for pattern in PATTERNS} - set(FINETUNE_CLASSES))
)


def draw(class_name: str, random: np.random.Generator) -> np.ndarray:
    """One image of a class: uint8 [height, width, 3], 48 to 160 pixels a side."""
    shape, pattern = class_name.split("-")
    short_side = int(random.integers(48, 113))
    long_side = int(short_side * random.uniform(1, 1.42))
    height, width = (short_side, long_side) if random.random() < 0.4 else (long_side, short_side)

    colours = _distinct_colours(random)
    image = _background(height, width, colours[2], random)
    radius = short_side * random.uniform(0.3, 0.48)
    centre_x, centre_y = (random.uniform(0.85 * radius, side - 0.85 * radius) for side in (width, height))
    x, y = _turned_grid(height, width, centre_x, centre_y, random.uniform(0, 2 * np.pi), radius)
    inside = np.clip(0.5 - SHAPES[shape](x, y) * radius, 0, 1)[..., None]
    turn, shift = random.uniform(0, np.pi), random.uniform(-0.2, 0.2, 2)
    across = np.cos(turn) * x + np.sin(turn) * y + shift[0]
    along = np.cos(turn) * y - np.sin(turn) * x + shift[1]
    first = np.clip(0.5 + PATTERNS[pattern](across, along) * radius / 9, 0, 1)[..., None]
    image += inside * (first * colours[0] + (1 - first) * colours[1] - image)

    image *= random.uniform(0.75, 1.1)
    image += random.normal(0, random.uniform(2, 9), (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


def _distinct_colours(random: np.random.Generator) -> np.ndarray:
    """Three random colours [3, 3], 0 to 255, any two of them far enough apart to be told apart."""
    while True:
        colours = random.uniform(20, 250, (3, 3))
        if min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 110:
            return colours


def _background(height: int, width: int, colour: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A colour gradient with faint clutter, float [height, width, 3]."""
    x, y = _turned_grid(height, width, width / 2, height / 2, random.uniform(0, 2 * np.pi), max(height, width))
    image = colour + x[..., None] * random.uniform(-60, 60, 3)
    for _ in range(random.integers(2, 6)):
        size = random.uniform(3, 12)
        x, y = _turned_grid(
            height, width, random.uniform(0, width), random.uniform(0, height), random.uniform(0, np.pi), size
        )
        blob = np.abs(x) ** 2 + np.abs(y * random.uniform(0.3, 3)) ** 2
        image += np.clip(size * (1 - blob) / 2, 0, 1)[..., None] * random.uniform(-80, 80, 3)
    return image


def _turned_grid(
    height: int, width: int, centre_x: float, centre_y: float, angle: float, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates about a centre, turned by `angle` radians, in units of `unit` pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - np.float32(centre_x)) / np.float32(unit), (y - np.float32(centre_y)) / np.float32(unit)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def encode(image: np.ndarray, random: np.random.Generator) -> tuple[str, bytes]:
    """File name ending and bytes of an image: seven of eight are JPEG, the others PNG."""
    buffer = io.BytesIO()
    if random.random() < 1 / 8:
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        return ".png", buffer.getvalue()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(random.integers(80, 96)))
    return ".jpg", buffer.getvalue()


def _write_class(folder: pathlib.Path, class_name: str, count: int, seed: int) -> int:
    """Writes `count` images of one class into `folder`; each image depends on seed, class and number only."""
    folder.mkdir(parents=True)
    for number in range(count):
        random = np.random.default_rng([seed, zlib.crc32(class_name.encode()), number])
        suffix, data = encode(draw(class_name, random), random)
        (folder / f"{number:05d}{suffix}").write_bytes(data)
    return count


def broken_files(seed: int) -> dict[str, bytes]:
    """A dozen files that are no whole image, by path below the output folder."""
    random = np.random.default_rng([seed, 1])
    image = draw("disc-plain", random)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    png = buffer.getvalue()
    huge = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "pretrain/arrow-dots/half_a_download.jpg": jpeg[: len(jpeg) // 2],
        "pretrain/cross-checks/empty.jpg": b"",
        "pretrain/disc-dots/notes.jpg": b"These are notes, not a picture.\n" * 20,
        "pretrain/half-plain/first_bytes_lost.jpg": jpeg[16:],
        "pretrain/ring-dots/half_a_download.png": png[: len(png) // 2],
        "pretrain/square-plain/zeros.jpg": bytes(2048),
        "pretrain/star-plain/error_page.jpg": b"<!DOCTYPE html><title>404 Not Found</title>\n",
        "finetune/cross-plain/header_only.jpg": jpeg[:24],
        "finetune/disc-stripes/flipped_bits.png": bytes(flipped),
        "finetune/ring-plain/noise.png": random.bytes(3000),
        "finetune/square-dots/first_bytes_lost.png": png[8:],
        "finetune/star-stripes/claims_50000_pixels_a_side.png": (
            png[:8] + (13).to_bytes(4, "big") + huge + zlib.crc32(huge).to_bytes(4, "big") + png[33:]
        ),
    }


def make(
    output_dir: str | os.PathLike,
    seed: int = 0,
    *,
    pretrain_images_per_class: int = 190,
    finetune_images_per_class: int = 200,
    processes: int | None = None,
) -> dict[str, int]:
    """Makes the demo images in `output_dir`, or finds them made.

    `output_dir` holds all images or does not exist. The same arguments give the same bytes for any number of
    `processes`.

    Returns:
      What the folder holds: the seed and the counts, as its `demo_images.json` says.

    Raises:
      ValueError: a count is below 1, or `output_dir` holds something else, or images of other arguments.
    """
    if min(pretrain_images_per_class, finetune_images_per_class) < 1:
        raise ValueError("Each class needs at least one image: give counts of 1 or more.")
    counts = {
        **{f"pretrain/{name}": pretrain_images_per_class for name in PRETRAIN_CLASSES},
        **{f"finetune/{name}": finetune_images_per_class for name in FINETUNE_CLASSES},
    }
    description = {
        "seed": seed,
        "pretrain_images": pretrain_images_per_class * len(PRETRAIN_CLASSES),
        "finetune_images": finetune_images_per_class * len(FINETUNE_CLASSES),
        "broken_files": len(broken_files(seed)),
    }

    def fill(folder: pathlib.Path) -> None:
        tasks = [(folder / path, os.path.basename(path), count, seed) for path, count in counts.items()]
        made_folder.in_processes(_write_class, tasks, sum(counts.values()), "demo images", processes)
        for path, data in broken_files(seed).items():
            (folder / path).write_bytes(data)

    made_folder.make(pathlib.Path(output_dir), MARKER, description, fill)
    return description


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder to make; must not exist, or hold these images")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images of the same classes")
    parser.add_argument("--pretrain_images_per_class", type=int, default=190)
    parser.add_argument("--finetune_images_per_class", type=int, default=200)
    try:
        made = make(**vars(parser.parse_args()))
    except ValueError as error:
        sys.exit(str(error))
    print(", ".join(f"{name.replace('_', ' ')}: {value:,}" for name, value in made.items()))


if __name__ == "__main__":
    main()
