"""Test accuracy on folders of images by gin/finetune_own.gin, beside a plain Keras network of equal processor time.

    python benchmarks/own.py [--sets=emoji,letters] [--folder=runs/bench-own]

Downloads public packages (see own_images.py), builds records of each set, trains from random weights with nothing
set but DATA_DIR and, where a set may be mirrored, MIRROR, and tests the best checkpoint. Then `keras_cnn.py` trains for
as many processor seconds as the whole training took, from start to end of the process, with its settings tuned for
each set by hand. AdamW and the resolutions of `auto_settings.py` were chosen on clothes and photographs, with their
test accuracy in sight; how crops vary, on validation images of clothes and icons (docs/own_images.md).
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import own_images


class Settings(NamedTuple):
    """Of a set: whether it may be mirrored, and what suits the Keras network."""

    mirror: bool
    size: int
    rate: float


SETTINGS = {
    "emoji": Settings(False, 32, 1e-3),
    "letters": Settings(False, 48, 1e-3),
    "clothes": Settings(True, 32, 1e-3),
    "icons": Settings(False, 32, 1e-3),
    "photographs": Settings(True, 64, 1e-3),
}


class Result(NamedTuple):
    """Test accuracy and processor seconds of a training."""

    accuracy: float
    seconds: float


def ours(name: str, images: pathlib.Path, folder: pathlib.Path) -> Result:
    """Builds, trains and tests as a user does; a training that was measured before is not repeated."""
    records, run_folder = folder / "records" / name, folder / "runs" / name
    measured = run_folder / "processor_seconds"
    run("beam/build_tfrecords.py", f"--input={images}", f"--output_dir={records}", "--validation_fraction=0.1")
    settings = [f'--gin_param=DATA_DIR="{records}"', f"--gin_param=MIRROR={SETTINGS[name].mirror}"]
    command = ["pipeline/main.py", "--gin_file=gin/finetune_own.gin", f"--model_dir={run_folder}", *settings]
    if not measured.exists():
        shutil.rmtree(run_folder, ignore_errors=True)  # half of a training would be cheaper than it was
        _, seconds = run(*command, "--task=train")
        measured.write_text(f"{seconds}\n")
    printed, _ = run(*command, "--task=evaluate", "--split=test")
    return Result(float(printed.split("top1 ")[1].split()[0]), float(measured.read_text()))


def keras(name: str, images: pathlib.Path, seconds: float) -> Result:
    """Trains and tests the Keras network."""
    settings = SETTINGS[name]
    flags = [f"--size={settings.size}", f"--rate={settings.rate}", f"--seconds={seconds}"]
    printed, _ = run("benchmarks/keras_cnn.py", images, *flags, *(["--mirror"] if settings.mirror else []))
    result = json.loads(printed.splitlines()[-1])
    return Result(result["accuracy"], result["seconds"])


def run(*command: object) -> tuple[str, float]:
    """What a Python program prints, and the processor seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Runs all sets and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(own_images.SETS), help="names, with commas")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs" / "bench-own")
    arguments = parser.parse_args()
    table = Table("set", "train", "test", "classes", "finetune_own.gin", "Keras", "difference", "processor seconds")
    for name in arguments.sets.split(","):
        images = own_images.make(name, arguments.folder.resolve())
        train, test = (sum(file.is_file() for file in (images / split).rglob("*")) for split in ("train", "test"))
        found = ours(name, images, arguments.folder.resolve())
        other = keras(name, images, found.seconds)
        table.add_row(
            name,
            f"{train:,}",
            f"{test:,}",
            str(len(list((images / "train").iterdir()))),
            f"{found.accuracy:.1%}",
            f"{other.accuracy:.1%}",
            f"{100 * (found.accuracy - other.accuracy):+.1f}",
            f"{found.seconds:.0f} and {other.seconds:.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
