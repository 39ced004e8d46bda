"""`report.md` and its pictures: what a build wrote, what it refused and why, for a person to read."""

import io
import itertools
import json
import os
import textwrap
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from beam import images, record_files, shards
from beam.errors import BuildError
from beam.examples import name_bytes, text
from pipeline import contact_sheet
from pipeline.data import manifest, record, shard
from pipeline.data.statistics import Statistics
from pipeline.files import write_atomically

FILE = "report.md"
PICTURES = r"report_\w+\.(png|jpg)"
_SAMPLE = 24  # tiles of a sheet
_NAMED = 40  # up to so many classes, each gets a bar with its name


def write(
    spec: shards.BuildSpec,
    classes: list[str],
    results: list[shards.ShardResult],
    splits: dict[str, manifest.Split],
    counted: Statistics,
    facts: list[str],
    rejected: str,
    pairs: str | None,
) -> None:
    """Writes the report of a build into its folder.

    `classes` are in label order; `counted` and `facts` are its counts and the lines of its summary; `rejected` and
    `pairs` are the paths of `rejected.jsonl` and `duplicates.jsonl`.
    """
    counts = np.sum(list(counted.images_per_class.values()), axis=0)
    sides = {int(bucket): count for bucket, count in counted.sides.items()}
    pictures = {
        "report_classes.png": _class_figure(classes, counts),
        "report_sizes.png": _size_figure(sides),
        "report_images.jpg": _sheet(_written(spec, results, classes)),
        "report_rejected.jpg": _sheet(_refused(spec, rejected)),
        "report_duplicates.jpg": _sheet(_pairs(spec, pairs)),
    }
    for name, data in pictures.items():
        path = os.path.join(spec.output_dir, name)
        if data:
            write_atomically(path, data, several_writers=True)
        elif tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)
    written = {name for name, data in pictures.items() if data}
    content = _text(spec, classes, counts, results, splits, facts, written)
    write_atomically(os.path.join(spec.output_dir, FILE), content, several_writers=True)


def _text(
    spec: shards.BuildSpec,
    classes: list[str],
    counts: np.ndarray,
    results: list[shards.ShardResult],
    splits: dict[str, manifest.Split],
    facts: list[str],
    pictures: set[str],
) -> str:
    lines = [f"# {spec.name}", "", "| split | listed | written | refused | shards | GiB |", "|---|---|---|---|---|---|"]
    for name, split in splits.items():
        size = sum(part.bytes for part in split.shards) / 2**30
        refused = split.listed - split.written
        lines.append(
            f"| {name} | {split.listed:,} | {split.written:,} | {refused:,} | {len(split.shards):,} | {size:,.3f} |"
        )
    lines += ["", *(f"- {fact}" for fact in facts)]
    passed, written = sum(s["passed"] for _, _, s in results), sum(s["examples"] for _, _, s in results)
    others = "; the others were encoded again" if passed < written else ""
    lines += ["", f"{passed:,} of {written:,} images passed through byte for byte{others}.", ""]
    reasons = sorted({reason for split in splits.values() for reason in split.rejected})
    if reasons:
        lines += ["## Refused", "", f"| reason | {' | '.join(splits)} |", "|---" * (len(splits) + 1) + "|"]
        for reason in reasons:
            numbers = " | ".join(f"{split.rejected.get(reason, 0):,}" for split in splits.values())
            lines.append(f"| {reason} | {numbers} |")
        lines += ["", "`rejected.jsonl` lists each one with its reason and detail.", ""]
        lines += _picture("report_rejected.jpg", pictures)
    pairs = sum(stats["pairs"] for _, _, stats in results)
    if pairs:
        lines += ["## Duplicates", "", f"{pairs:,} images with a duplicate; `duplicates.jsonl` names the pairs.", ""]
        lines += _picture("report_duplicates.jpg", pictures)
    lines += ["## Classes", "", *_class_lines(classes, counts), *_picture("report_classes.png", pictures)]
    lines += ["## Sizes", "", *_picture("report_sizes.png", pictures)]
    lines += ["## A sample", "", *_picture("report_images.jpg", pictures)]
    return "\n".join(lines).rstrip() + "\n"


def _picture(name: str, pictures: set[str]) -> list[str]:
    return [f"![]({name})", ""] if name in pictures else []


def _class_lines(classes: list[str], counts: np.ndarray) -> list[str]:
    order = np.argsort(-counts, kind="stable")
    quantiles = np.quantile(counts, (0, 0.25, 0.5, 0.75, 1)).round().astype(int)
    ends = [("largest", order[:5]), ("smallest", order[::-1][:5])] if len(classes) > 5 else [("all", order)]
    named = [f"{name}: " + ", ".join(f"{classes[i]} ({counts[i]:,})" for i in indices) for name, indices in ends]
    return [
        f"{len(classes):,} classes, {int((counts == 0).sum()):,} of them without an image. Images a class, from the "
        f"minimum over the quartiles to the maximum: {', '.join(f'{q:,}' for q in quantiles)}.",
        "",
        *(f"- {line}" for line in named),
        "",
    ]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A Matplotlib figure and its axes."""
    from matplotlib.figure import Figure  # here: workers that only write shards do not need it

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _class_figure(classes: list[str], counts: np.ndarray) -> bytes:
    """A bar for each of a few classes; for many, the counts by rank on logarithmic axes."""
    if len(classes) <= _NAMED:
        figure, axes = _figure(7, 1 + 0.2 * len(classes))
        axes.barh([textwrap.shorten(name, 40) or "?" for name in _plain(classes)], counts, color="tab:blue")
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel("images")
        return _png(figure)
    figure, axes = _figure(7, 4)
    axes.plot(np.arange(1, len(counts) + 1), np.sort(counts)[::-1], drawstyle="steps-mid")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel("class, by number of images")
    axes.set_ylabel("images")
    axes.grid(alpha=0.3)
    return _png(figure)


def _plain(names: list[str]) -> list[str]:
    """Labels that Matplotlib's default font can draw, without signs that start mathematics."""
    plain = (name.encode("latin-1", "replace").decode("latin-1").replace("$", r"\$") for name in names)
    return [f"{index}: {name}" for index, name in enumerate(plain)]


def _size_figure(sides: dict[int, int]) -> bytes:
    figure, axes = _figure(7, 3)
    buckets = range(min(sides), max(sides) + 1)
    axes.bar([f"{round(2 ** (b / 2))}" for b in buckets], [sides.get(b, 0) for b in buckets], align="edge", width=0.9)
    axes.set_xlabel("shorter side, pixels (from)")
    axes.set_ylabel("images")
    return _png(figure)


def _written(spec: shards.BuildSpec, results: list[shards.ShardResult], classes: list[str]) -> list[contact_sheet.Tile]:
    """The first records of each shard: they are ordered by hash of the key, so this is a random sample."""
    filled = [stats for _, _, stats in results if stats["examples"]]
    tiles: list[contact_sheet.Tile] = []
    for number, stats in itertools.product(range(_SAMPLE), filled):
        if len(tiles) == _SAMPLE:
            break
        if number < stats["examples"]:
            path = os.path.join(spec.output_dir, stats["file"])
            (payload,) = shard.read_records(path, shard.read_index(path, stats["examples"]), number, 1)
            if payload is None:
                raise BuildError(
                    f"Record {number} of {path}, which an earlier build wrote, is damaged: remove {path}.json, and the "
                    "same command writes this shard again."
                )
            values = record.decode(payload)
            labels = [values["label"]] if "label" in values else values["labels"]
            title = ", ".join(classes[label] for label in labels)
            tiles.append((_thumbnail(values["image"], spec), [title]))
    return tiles


def _refused(spec: shards.BuildSpec, path: str | None) -> list[contact_sheet.Tile]:
    tiles: list[contact_sheet.Tile] = []
    for row in _rows(path, _SAMPLE):
        tiles.append((_from_location(row["path"], row["offset"], row["size"], spec), [row["reason"], row["key"]]))
    return tiles


def _pairs(spec: shards.BuildSpec, path: str | None) -> list[contact_sheet.Tile]:
    tiles: list[contact_sheet.Tile] = []
    for row in _rows(path, _SAMPLE):
        for which in ("", "other_"):
            location = row[f"{which}path"], row[f"{which}offset"], row[f"{which}size"]
            relation = "of this image" if which else f"{row['reason']}, {row['distance']} bits"
            tiles.append((_from_location(*location, spec), [relation, row[f"{which}key"]]))
    return tiles


def _rows(path: str | None, count: int) -> list[dict]:
    if path is None:
        return []
    with tf.io.gfile.GFile(path) as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


def _from_location(path: str, offset: int, size: int, spec: shards.BuildSpec) -> Image.Image | None:
    try:
        return _thumbnail(record_files.read(text(name_bytes(path)), offset, size, spec.image_settings.max_bytes), spec)
    except (OSError, ValueError):
        return None


def _thumbnail(data: bytes, spec: shards.BuildSpec) -> Image.Image | None:
    return contact_sheet.thumbnail(data, images.FORMATS, spec.image_settings.max_pixels)


def _sheet(tiles: list[contact_sheet.Tile]) -> bytes | None:
    return contact_sheet.jpeg(tiles) if tiles else None
