"""How well the order mixes what lies together in storage, against a true uniform shuffle.

    python benchmarks/shuffle_quality.py                    a table, for several sizes of block and window
    python benchmarks/shuffle_quality.py --figure=FILE.png  a picture of the order

Arithmetic alone: no record is read. The data set is sorted by class, the worst that storage can be; the Beam job
spreads keys over shards by hash, so that its record sets are never sorted.
"""

import argparse
import itertools
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from pipeline.data import order as orders
from pipeline.data.batch_shape import BatchShape

SIZES = ((4, 16), (8, 16), (8, 20), (16, 64), (32, 64), (64, 256))


def rows(order: orders.Order) -> np.ndarray:
    """Storage positions of an epoch's slots, int64 [rows, lanes], negative in empty ones."""
    compute = tf.function(lambda window: order.positions(0, window)[1])
    return np.concatenate([compute(tf.constant(window, tf.int64)) for window in range(order.windows)])


def epoch(order: orders.Order) -> np.ndarray:
    """Storage positions, int64 [examples], in the order of training."""
    table = rows(order)
    return table[table >= 0]


def places(positions: np.ndarray) -> np.ndarray:
    """Where in training each storage position stands."""
    inverse = np.empty_like(positions)
    inverse[positions] = np.arange(len(positions))
    return inverse


def quality(positions: np.ndarray, batch: int, classes: int) -> dict[str, float]:
    """Measures of one epoch's order.

    Returns:
      `together`: share of the storage's neighbours that are in one batch; `near`: share that are within ten batches;
      `commonest`: mean share of a batch that its commonest class takes; `same`: mean share of pairs of one batch
      that are of one class, times the number of classes (1 for a perfect mix).
    """
    batches = places(positions) // batch
    apart = np.abs(np.diff(batches))
    labels = positions * classes // len(positions)
    full = labels[: len(labels) // batch * batch].reshape(-1, batch)
    counts = np.stack([np.bincount(b, minlength=classes) for b in full])
    pairs = (counts * (counts - 1)).sum(1) / (batch * (batch - 1))
    return {
        "together": np.mean(apart == 0),
        "near": np.mean(apart <= 10),
        "commonest": np.mean(counts.max(1)) / batch,
        "same": np.mean(pairs) * classes,
    }


def table(examples: int, batch: int, classes: int) -> Table:
    """The measures for several sizes, and for a uniform shuffle."""
    shown = Table(title=f"{examples:,} records sorted by {classes} classes, batches of {batch}")
    for column in ("block", "window", "neighbours in one batch", "within ten", "commonest class", "pairs of a class"):
        shown.add_column(column, justify="right")
    rows = [
        (str(block), str(window), epoch(orders.Order(examples, BatchShape(batch).lanes, block=block, window=window)))
        for block, window in SIZES
    ]
    rows.append(("uniform", "", np.random.default_rng(0).permutation(examples)))
    for block, window, positions in rows:
        q = quality(positions, batch, classes)
        shown.add_row(
            block, window, f"{q['together']:.3%}", f"{q['near']:.2%}", f"{q['commonest']:.2%}", f"{q['same']:.4f}"
        )
    return shown


def figure(path: str) -> None:
    """Draws the four steps of the order for a small set: colour is the place in storage."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    order = orders.Order(240, 8, block=6, window=9)
    stored = np.arange(order.examples)
    permuted = order.stored(0, tf.constant(stored)).numpy()
    mixed = rows(order)
    lead = order.first_window_rows(0)
    borders = [0, *range(lead, order.rows, order.window), order.rows]
    in_place = places(permuted)[mixed]
    unmixed = np.concatenate([np.sort(in_place[a:b], 0) for a, b in itertools.pairwise(borders)])

    panels, axes = pyplot.subplots(4, 1, figsize=(9, 6.4), height_ratios=(1, 1, 4, 4), layout="constrained")
    colours = {"cmap": "turbo", "vmin": 0, "vmax": order.examples - 1, "aspect": "auto", "interpolation": "nearest"}
    axes[0].imshow(stored[None], **colours)
    axes[0].set_title("1  Storage: shard after shard; colour is the place of a record", loc="left", fontsize=10)
    axes[1].imshow(permuted[None], **colours)
    axes[1].set_title(
        f"2  Blocks of {order.block} neighbours, permuted again in each epoch; each window (black) takes the next ones",
        loc="left",
        fontsize=10,
    )
    for border in borders[1:-1]:
        axes[1].axvline(border * order.lanes - 0.5, color="black", linewidth=1.5)
    axes[2].imshow(permuted[unmixed].T, **colours)
    axes[2].set_title("3  Each lane takes a part of every window", loc="left", fontsize=10)
    axes[3].imshow(mixed.T, **colours)
    axes[3].set_title(
        "4  Each lane shuffled inside the windows (white); a batch (black) takes the next rows of all lanes",
        loc="left",
        fontsize=10,
    )
    for axis in axes[2:]:
        for border in borders[1:-1]:
            axis.axvline(border - 0.5, color="white", linewidth=2)
    axes[3].add_patch(pyplot.Rectangle((5.5, -0.45), 2, order.lanes - 0.1, fill=False, linewidth=2.5))
    axes[3].set_xlabel("row: time")
    for axis in axes:
        axis.set_yticks([])
    for axis in axes[:2]:
        axis.set_xticks([])
    for axis in axes[2:]:
        axis.set_ylabel("lane")
    panels.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=256_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--figure", help="draw a picture into this file instead")
    flags = parser.parse_args()
    if flags.figure:
        figure(flags.figure)
    else:
        Console(width=110).print(table(flags.examples, flags.batch, flags.classes))


if __name__ == "__main__":
    main()
