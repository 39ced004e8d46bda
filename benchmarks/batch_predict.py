"""Speed of batch prediction against plain prediction with the same SavedModel, on this machine's CPU.

    python benchmarks/batch_predict.py [--images=4000] [--turns=5]

Both read the same JPEGs, call `predict_bytes` of a `nano` at 96 pixels in batches of 32, and write Parquet; `plain` is
a loop over the files, `job` all of beam/batch_predict.py. They take turns in one process, and each loads the model; a
ratio is the median of those within a turn, of images per second by the clock and of processor time with children.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from pipeline import command_line

command_line.set_up_tensorflow()

import pyarrow
import pyarrow.parquet
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from beam.prediction import launch
from benchmarks.augment import photograph
from benchmarks.serve import SIZES, trained
from pipeline.serving import client, version_folder
from pipeline.serving.metadata import Origin
from pipeline.serving.servable import BYTES, Servable, Settings

GOAL = 0.8
BATCH = 32
CLASSES = 1000
_DIFFERENT = 400  # different images; the others are links to them


class Seconds(NamedTuple):
    """Of a turn: by the clock, and of all processors together."""

    wall: float
    processor: float


def make_images(folder: str, count: int) -> list[str]:
    """Writes `count` JPEGs; returns their paths, sorted."""
    paths = [os.path.join(folder, f"{number:06d}.jpg") for number in range(count)]
    for number, path in enumerate(paths):
        if number >= _DIFFERENT:
            os.link(paths[number % _DIFFERENT], path)
            continue
        with open(path, "wb") as file:
            file.write(photograph(number))
    return paths


def export(folder: str) -> str:
    """Exports a `nano` of random weights; returns its version folder."""
    settings = Settings([f"class {label}" for label in range(CLASSES)], SIZES["nano"])
    return version_folder.write(Servable(trained("nano"), settings), settings, Origin("nano", 0), folder)


def plain(model: str, paths: list[str], output: str) -> None:
    """What a user writes by hand: nothing is retried, restarted or accounted for."""
    predict = client.load(model).signatures[BYTES]
    columns: dict[str, list] = {"image": paths, "top_classes": [], "top_probabilities": [], "valid": []}
    for start in range(0, len(paths), BATCH):
        images = []
        for path in paths[start : start + BATCH]:
            with open(path, "rb") as file:
                images.append(file.read())
        answer = predict(image_bytes=tf.constant(images))
        columns["top_classes"] += [[name.decode() for name in row] for row in answer["top_classes"].numpy().tolist()]
        for name in ("top_probabilities", "valid"):
            columns[name] += answer[name].numpy().tolist()
    os.makedirs(output)
    pyarrow.parquet.write_table(pyarrow.table(columns), os.path.join(output, "predictions.parquet"))


def job(model: str, folder: str, output: str) -> None:
    """The whole job."""
    flags = [f"--saved_model={model}", f"--images={folder}", f"--output={output}", f"--batch_size={BATCH}"]
    if launch.main(flags):
        raise SystemExit("The job failed.")


def measured(call: Callable[[], None]) -> Seconds:
    """How long a call takes, with the processes that it starts."""
    before, start = _processor(), time.perf_counter()
    call()
    return Seconds(time.perf_counter() - start, _processor() - before)


def _processor() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def check(output: str, count: int) -> None:
    """Both must have said the same of every image."""
    with open(os.path.join(output, "job", "summary.json")) as file:
        summary = json.load(file)
    tables = [
        pyarrow.parquet.read_table(os.path.join(output, *names), columns=["image", "top_classes"])
        for names in (("plain",), ("job", "predictions"))
    ]
    if summary["predicted"] != count or tables[0].to_pydict() != tables[1].to_pydict():
        raise SystemExit(f"The two differ: {summary}.")


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(images := os.path.join(folder, "images"))
        paths, model = make_images(images, arguments.images), export(os.path.join(folder, "model"))
        turns = []
        for turn in range(arguments.turns + 1):
            output = os.path.join(folder, f"output{turn}")
            functions = (
                lambda output=output: plain(model, paths, os.path.join(output, "plain")),
                lambda output=output: job(model, images, os.path.join(output, "job")),
            )
            order = (0, 1) if turn % 2 else (1, 0)
            times = {place: measured(functions[place]) for place in order}
            check(output, arguments.images)
            turns.append((times[0], times[1]))
    turns = turns[1:]  # the first one warms up
    table = Table("", "plain", "job", "ratio", "goal", title=f"{arguments.images:,} images, nano at 96 pixels")
    for place, (name, goal) in enumerate((("images per second", ""), ("images per processor second", str(GOAL)))):
        rates = [statistics.median(arguments.images / turn[who][place] for turn in turns) for who in (0, 1)]
        ratio = statistics.median(turn[0][place] / turn[1][place] for turn in turns)
        table.add_row(name, *(f"{rate:.0f}" for rate in rates), f"{ratio:.2f}", goal)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
