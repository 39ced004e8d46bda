"""Draws the images of the scaling study in small: many patterns of unequal frequency, as tar shards, from a seed alone.

    python examples/make_pattern_images.py --output_dir=runs/study_images --seed=0

    OUTPUT_DIR/pretrain/train-NN.tar, validation-NN.tar     256 classes of 4,096 patterns
    OUTPUT_DIR/finetune/train-NN.tar, validation-NN.tar     32 classes of 256 other patterns
    OUTPUT_DIR/pattern_images.json                          what was made; its presence says that the folder is whole

A pattern is a coarse grid of random colours. An image shows one at a random place and contrast, in noise; its class is
that of its pattern, drawn once at random, so that each pattern has to be learned by itself. The k-th pattern of
pre-training is shown in proportion to (k + 10)^-1.3, Mandelbrot's form of Zipf's law: a model that has learned the most
frequent n is wrong on a share that falls as a power of n + 10, and so does its loss. The argument is that of Michaud et
al., "The Quantization Model of Neural Scaling", 2023. The offset keeps a few patterns from being most of the images.
No label is wrong, so that the loss has no floor.
"""

import argparse
import functools
import io
import os
import pathlib
import sys
import tarfile
from typing import NamedTuple

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import numpy as np
from PIL import Image

from examples import made_folder

MARKER = "pattern_images.json"
SIDE, PATTERN_SIDE = 24, 16  # pixels
CELLS = 5  # of a pattern, along a side
CONTRAST = (0.6, 1.0)
NOISE = 64  # standard deviation, in grey levels
SHARD = 4_000  # images


class PatternSet(NamedTuple):
    """Numbers of classes, patterns and images; the k-th pattern is shown in proportion to (k + offset)^-exponent."""

    classes: int
    patterns: int
    train: int
    validation: int
    exponent: float = 0.0
    offset: int = 0


SETS = {
    "pretrain": PatternSet(classes=256, patterns=4_096, train=128_000, validation=4_000, exponent=1.3, offset=10),
    "finetune": PatternSet(classes=32, patterns=256, train=4_000, validation=2_000),
}


class Patterns:
    """The patterns of one of `SETS`.

    Attributes:
      images: uint8 [patterns, PATTERN_SIDE, PATTERN_SIDE, 3].
      classes: of each, int64 [patterns].
      frequencies: share of the images that show it, float64 [patterns].
    """

    def __init__(self, name: str, seed: int):
        random, chosen = np.random.default_rng([seed, list(SETS).index(name)]), SETS[name]
        grids = random.integers(0, 256, (chosen.patterns, CELLS, CELLS, 3), np.uint8)
        size = (PATTERN_SIDE, PATTERN_SIDE)
        resized = (Image.fromarray(grid).resize(size, Image.Resampling.BILINEAR) for grid in grids)
        self.images = np.stack([np.asarray(image) for image in resized])
        self.classes = random.integers(0, chosen.classes, chosen.patterns)
        weights = (np.arange(1, chosen.patterns + 1) + chosen.offset) ** -chosen.exponent
        self.frequencies = weights / weights.sum()

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, int]:
        """An image, uint8 [SIDE, SIDE, 3], and its class."""
        pattern = random.choice(len(self.classes), p=self.frequencies)
        row, column = random.integers(0, SIDE - PATTERN_SIDE + 1, 2)
        image = np.full((SIDE, SIDE, 3), 128.0)
        image[row : row + PATTERN_SIDE, column : column + PATTERN_SIDE] = self.images[pattern]
        image = 128 + (image - 128) * random.uniform(*CONTRAST) + random.normal(0, NOISE, image.shape)
        return np.clip(image, 0, 255).astype(np.uint8), int(self.classes[pattern])


_patterns = functools.cache(Patterns)  # for the shards of a process


def _write_shard(path: pathlib.Path, name: str, count: int, seed: int) -> int:
    """Writes a tar of `count` images of the set `name`; they depend on the seed, the set and the file's name only."""
    patterns = _patterns(name, seed)
    random = np.random.default_rng([seed, *path.relative_to(path.parent.parent).as_posix().encode()])
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            image, label = patterns.draw(random)
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "JPEG", quality=90)
            for suffix, content in (("jpg", encoded.getvalue()), ("cls", f"{label:03d}".encode())):
                member = tarfile.TarInfo(f"{path.stem}-{number:05d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return count


def make(output_dir: str | os.PathLike, seed: int = 0, share: float = 1.0, processes: int | None = None) -> None:
    """Makes the images in `output_dir`, or finds them made: it holds all of them or does not exist.

    The same arguments give the same bytes for any number of `processes`.

    Raises:
      ValueError: `share` is not within 0 and 1, or `output_dir` holds something else, or images of other arguments.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--share is {share}; expected more than 0 and at most 1.")
    counts = {
        f"{name}/{split}": round(count * share)
        for name, chosen in SETS.items()
        for split, count in (("train", chosen.train), ("validation", chosen.validation))
    }

    def fill(folder: pathlib.Path) -> None:
        tasks = []
        for place, count in counts.items():
            (folder / place).parent.mkdir(exist_ok=True)
            for shard, first in enumerate(range(0, count, SHARD)):
                path = folder / f"{place}-{shard:02d}.tar"
                tasks.append((path, path.parent.name, min(SHARD, count - first), seed))
        made_folder.in_processes(_write_shard, tasks, sum(counts.values()), "pattern images", processes)

    sets = {name: chosen._asdict() for name, chosen in SETS.items()}
    made_folder.make(pathlib.Path(output_dir), MARKER, {"seed": seed, "share": share, **sets}, fill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder to make; must not exist, or hold these images")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other patterns")
    parser.add_argument("--share", type=float, default=1.0, help="of the images, for a quick try")
    try:
        make(**vars(parser.parse_args()))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
