"""`import pipeline`, as a notebook uses it; and the example notebook, in a process that has only what pip installs."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import setuptools  # noqa: F401 (the wheel's build backend)
from PIL import Image

import pipeline
from pipeline import registry
from tests import record_sets, tiny_runs
from tests.served_model import CLASSES, encoded, export

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = "examples/own_images.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has been exported: a network that tells dark images from bright ones."""
    folder = tmp_path_factory.mktemp("run")
    export(folder / registry.SAVED_MODEL)
    return pipeline.load_run(folder)


def grey(level):
    return np.full((40, 48, 3), level, np.uint8)


def test_a_run_knows_its_classes(run):
    assert run.classes == tuple(CLASSES)


def test_every_kind_of_image_is_classified_in_its_order(run, tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(250, "PNG"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/text.jpg").write_text("no image")
    images = [tmp_path / "photo.png", grey(10), grey(128)[..., 0], Image.fromarray(grey(250)), encoded(10)]
    predictions = run.predict([*images, str(tmp_path / "folder")], top=1)
    classes = [prediction.classes for prediction in predictions]
    assert classes == [["bright"], ["dark"], ["middle"], ["bright"], ["dark"], []]
    assert predictions[0].image == str(tmp_path / "photo.png") and "image" in predictions[-1].error


def test_one_image_needs_no_list(run):
    (prediction,) = run.predict(grey(250))
    assert prediction.classes[0] == "bright" and sum(prediction.probabilities) == pytest.approx(1)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3), np.float32), np.zeros(4, np.uint8)])
def test_an_array_that_is_no_image_is_refused(run, array):
    with pytest.raises(ValueError, match=rf"{array.dtype}.*uint8 \[height, width, 3\]"):
        run.predict(array)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.gin.*not the folder of a run"):
        pipeline.evaluate(tmp_path)


def test_the_import_is_cheap_and_names_what_there_is():
    script = (
        "import sys, pipeline; print('tensorflow' in sys.modules, {*pipeline.__all__} <= {*dir(pipeline)}); pipeline.no"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False True\n" and "no attribute 'no'" in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what `pip install .` puts into site-packages."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site-packages")
    shutil.copytree(ROOT / "pipeline", source / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    script = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    shutil.unpack_archive(wheel, target, "zip")
    wheel.unlink()
    return target


def test_the_wheel_holds_the_whole_package_and_nothing_else(installed):
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"pipeline"}
    kept = {path.relative_to(ROOT) for path in (ROOT / "pipeline").rglob("*") if path.is_file()}
    found = {path.relative_to(installed) for path in (installed / "pipeline").rglob("*")}
    assert {path for path in kept if "__pycache__" not in path.parts} <= found
    (licence,) = installed.rglob("LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.slow
def test_the_example_notebook_runs(installed, tmp_path):
    record_sets.make(tmp_path / "data/mine", examples=32, validation=16, classes=4)
    (tmp_path / "my_images").mkdir()
    (tmp_path / "my_images/dark.jpg").write_bytes(encoded(10))
    (tmp_path / "my_images/broken.jpg").write_text("no image")
    settings = ['DATA_DIR="data/mine"', "Experiment.max_steps=1", 'nfnet.variant="pico"']
    command = [sys.executable, ROOT / "pipeline/main.py", "--model_dir=runs/mine", f"--gin_file={tmp_path}/tiny.gin"]
    (tmp_path / "tiny.gin").write_text(tiny_runs.GIN)
    subprocess.run([*command, *(f"--gin_param={setting}" for setting in settings)], cwd=tmp_path, check=True)
    cells = json.loads((ROOT / NOTEBOOK).read_text())["cells"]
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", script] if sys.version_info >= (3, 11) else [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 classes: class0" in done.stdout
    assert "broken.jpg not an image" in done.stdout and "dark.jpg class" in done.stdout
    assert "top1" in done.stdout
