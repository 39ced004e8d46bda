"""`report.html` of a run: its curves, settings, ledger and data, as far as its folder holds them."""

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from pipeline import files, report
from pipeline.data import manifest, statistics
from pipeline.evaluation import figures, split_report
from pipeline.evaluation.names import short
from pipeline.evaluation.page import Page, Picture, Section, Table, render

PAGE = "report.html"
_LEDGER_ROWS = 200
_LARGEST_PICTURE = 2 << 20  # bytes of a picture of the record set's own report


def write(run: str, data: str) -> str:
    """Writes the page of the run in the folder `run`, from the files there and in its record set `data`.

    Returns:
      The path of the page.
    """
    summary, lines = report.find_summary(run) or {}, report.read_metrics(run)
    sections = [*_curves(lines, summary), *_evaluations(run), *_ledger(summary, lines), *_data(data, summary)]
    page = Page(run, _head(summary, lines), _numbers(summary), [*sections, *_settings(run, summary)])
    path = os.path.join(run, PAGE)
    files.write_atomically(path, render(page))
    return path


def write_or_warn(run: str, data: str) -> None:
    """As `write`, and says where the page is; what goes wrong is a warning, since the run itself is done."""
    try:
        print(f"Report: {write(run, data)}")
    except Exception:
        logging.exception("The report of %s cannot be written; everything else of the run is there.", run)


def _head(summary: Mapping, lines: Sequence[Mapping]) -> list[str]:
    if not summary:
        step = max((line["step"] for line in lines), default=0)
        return [f"Not finished: metrics up to step {step:,}."]
    damaged = len(summary["damaged_records"])
    left_out = f" Damaged records left out: {damaged:,}." if damaged else ""
    return [
        f"{summary['variant']} with {summary['parameters']:,} parameters: {summary['images_seen']:,} images in "
        f"{summary['step']:,} steps, {summary['epochs']:g} epochs.{left_out}"
    ]


def _numbers(summary: Mapping) -> list[tuple[str, str]]:
    numbers = []
    for name, form in (("top1", ".2%"), ("top5", ".2%"), ("loss", ".4g")):
        if (value := summary.get(f"validation_{name}")) is not None:
            numbers.append((f"validation {name.replace('top', 'top-')}", format(value, form)))
    if speed := summary.get("images_per_second"):
        numbers.append(("images per second", f"{speed:,.4g}"))
    return numbers


def _curves(lines: Sequence[Mapping], summary: Mapping) -> list[Section]:
    names = sorted({name for line in lines for name in line})
    panels = {}
    for metric in ("loss", "top1"):
        of_splits = [name for name in names if name.endswith(f"_{metric}")]
        curves = {"training": _curve(lines, metric)}
        curves |= {name.removesuffix(f"_{metric}"): _curve(lines, name) for name in of_splits}
        panels[metric.replace("top", "top-")] = curves
    panels["learning rate"] = {"learning rate": _curve(lines, "learning_rate")}
    images_per_step = summary["images_seen"] / summary["step"] if summary.get("step") else None
    speed = "images per second" if images_per_step else "steps per second"
    panels[speed] = {speed: _speed(lines, images_per_step or 1.0)}
    panels = {title: {name: curve for name, curve in each.items() if curve[0]} for title, each in panels.items()}
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        return []
    caption = (
        "metrics.jsonl has the values. The loss of training is of varied images, with label smoothing if it is on."
    )
    return [Section("Curves", pictures=[Picture(figures.curves(panels), caption)])]


def _curve(lines: Sequence[Mapping], name: str) -> figures.Curve:
    """Steps and values of one metric."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return steps, values


def _speed(lines: Sequence[Mapping], images_per_step: float) -> figures.Curve:
    """Images per second between one line and the next."""
    steps, seconds = _curve(lines, "seconds")
    took = np.diff((0.0, *seconds))
    speed = np.diff((0, *steps)) * images_per_step / np.where(took > 0, took, np.nan)
    return steps, speed.tolist()


def _evaluations(run: str) -> list[Section]:
    """A row for each split that has been evaluated with pictures and tables, with a link to its page."""
    folder = os.path.join(run, "evaluation")
    rows, links = [], {}
    for split in sorted(tf.io.gfile.listdir(folder)) if tf.io.gfile.isdir(folder) else ():
        split = split.rstrip("/")
        path = os.path.join(folder, split, split_report.METRICS)
        if tf.io.gfile.exists(path):
            with files.opened(path, "r") as file:
                values = json.load(file)
            missing = float("nan")
            metrics = (values.get(name, missing) for name in ("top1", "top5", "loss", "macro_f1", "calibration_error"))
            rows.append((split, values["step"], values["examples"], *metrics))
            links[split] = f"evaluation/{split}/{split_report.PAGE}"
    if not rows:
        return []
    head = ("split", "step", "examples", "top-1", "top-5", "loss", "macro F1", "calibration error")
    return [Section("Evaluations", tables=[Table(head, rows, links)])]


def _ledger(summary: Mapping, lines: Sequence[Mapping]) -> list[Section]:
    """Whether each epoch consumed each example exactly once."""
    title = "Ledger"
    if not summary:
        proved = max((line.get("epochs_exactly_once", 0) for line in lines), default=0)
        return [Section(title, [f"Epochs that consumed each example exactly once, so far: {proved:,}."])]
    entries = summary["ledger"]
    exact = sum(entry["exactly_once"] for entry in entries)
    line = f"{exact:,} of {len(entries):,} epochs consumed each example exactly once."
    shown = sorted(entries, key=lambda entry: entry["exactly_once"])[:_LEDGER_ROWS]
    if len(shown) < len(entries):
        line += f" The table has {_LEDGER_ROWS:,} of them, and run.json all."
    rows = [(e["epoch"], e["examples"], e["expected"], "yes" if e["exactly_once"] else "NO") for e in shown]
    return [Section(title, [line], tables=[Table(("epoch", "examples", "expected", "exactly once"), rows)])]


def _data(data: str, summary: Mapping) -> list[Section]:
    """What the record set holds, if it is the one that the run was trained on, with the pictures of its own report."""
    try:
        record_set = manifest.read(data)
    except (manifest.ManifestError, OSError, tf.errors.OpError) as error:
        return [Section("Data", [f"The record set cannot be read: {short(str(error), 300)}"])]
    if summary and summary["data_digest"] != record_set.digest:
        return [Section("Data", [f"{data} is not what the run was trained on."])]
    rows = []
    for name, split in record_set.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 2**30
        refused = ", ".join(f"{count:,} {reason}" for reason, count in sorted(split.rejected.items())) or "–"
        rows.append((name, split.listed, split.written, refused, len(split.shards), size))
    table = Table(("split", "listed", "written", "refused", "shards", "GiB"), rows)
    lines = [f"{record_set.name}, in {data}: {len(record_set.classes):,} classes."]
    pictures = [
        picture
        for name, kind, caption in (
            ("report_classes.png", "image/png", "Images per class."),
            ("report_images.jpg", "image/jpeg", "A sample of its images."),
        )
        if (picture := _picture(os.path.join(data, name), kind, caption))
    ]
    return [Section("Data", lines, pictures, [table, *_images_per_class(data)])]


def _images_per_class(data: str) -> list[Table]:
    """How many images the classes of each split have, where the build left its statistics."""
    try:
        counts_of = statistics.read(data).images_per_class
    except manifest.ManifestError:  # none, or of an older version
        return []
    rows = [
        (split, sum(count > 0 for count in counts), min(counts), float(np.median(counts)), max(counts))
        for split, counts in counts_of.items()
    ]
    return [Table(("split", "classes with images", "smallest class", "median", "largest class"), rows)]


def _picture(path: str, kind: str, caption: str) -> Picture | None:
    if not tf.io.gfile.exists(path) or tf.io.gfile.stat(path).length > _LARGEST_PICTURE:
        return None
    with files.opened(path, "rb") as file:
        return Picture(file.read(), caption, kind)


def _settings(run: str, summary: Mapping) -> list[Section]:
    rows = list(summary.get("bindings", {}).items())
    tables = [Table(("setting", "value"), rows)] if rows else []
    path, config = os.path.join(run, report.CONFIG_FILE), ""
    if tf.io.gfile.exists(path):
        with files.opened(path, "r") as file:
            config = file.read()
    if not (rows or config):
        return []
    return [Section("Settings", tables=tables, code=config, code_title=report.CONFIG_FILE)]
