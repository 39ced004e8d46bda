"""`predict.py` as its user types it, on a network that tells dark images from bright ones."""

import csv
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from pipeline import predict
from tests.served_model import encoded, export

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONG = "a name with a comma, as long as those that cameras and people give their pictures, and longer.png"


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved_model")
    export(path)
    return str(path)


@pytest.fixture
def images(tmp_path):
    """A dark image, a bright one with a long name in a folder, and a text; the names in the order of prediction."""
    folder = tmp_path / "images"
    names = ["dark.png", "text.jpg", f"sub/{LONG}"]
    for name, data in zip(names, (encoded(10, "PNG"), b"text", encoded(250, "PNG")), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder, [str(folder / name) for name in names]


@pytest.fixture
def run(saved_model, capsys):
    """Runs the program with arguments and flags; returns exit code and standard output."""

    def call(*arguments, **values):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        with flagsaver.flagsaver(saved_model=saved_model, **values):
            code = predict.main(["predict.py", *map(str, arguments)])
        return code, capsys.readouterr().out

    return call


def test_the_table_shows_whole_names(run, images):
    folder, paths = images
    code, shown = run(folder)
    assert code == 1  # one of them is a text
    assert all(path in shown for path in paths)
    assert [shown.index(path) for path in paths] == sorted(shown.index(path) for path in paths)
    assert "not classified: not an image" in shown


def test_json_and_csv_say_the_same(run, images):
    folder, paths = images
    code, shown = run(folder, json=True, top=2)
    predictions = [json.loads(line) for line in shown.splitlines()]
    assert code == 1
    assert [p["image"] for p in predictions] == paths
    assert [p["classes"][:1] for p in predictions] == [["dark"], [], ["bright"]]
    _, shown = run(folder, csv=True, top=2)
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert [(row["image"], row["rank"], row["class"]) for row in rows if row["class"]] == [
        (p["image"], str(i + 1), name) for p in predictions for i, name in enumerate(p["classes"])
    ]
    (failed,) = [row for row in rows if row["error"]]
    assert failed["image"] == paths[1] and failed["error"] == predictions[1]["error"]


def test_a_list_on_standard_input(run, images, monkeypatch):
    _, paths = images
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(paths[::2]).encode())))
    code, shown = run("-", json=True)
    assert code == 0
    assert [json.loads(line)["image"] for line in shown.splitlines()] == paths[::2]


def test_a_name_that_is_not_text(run, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        file.write(encoded(10, "PNG"))
    code, shown = run(tmp_path, json=True)
    assert code == 0
    assert os.fsencode(json.loads(shown)["image"]) == path


def test_the_picture_shows_each_image(run, images, tmp_path):
    folder, _ = images
    run(folder, picture=str(tmp_path / "sheet.png"))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).astype(int)
    middles = sheet[68, 68::136]
    assert len(middles) == 3
    assert abs(middles[0] - 10) < 5 and abs(middles[2] - 250) < 5
    text = sheet[140:, :]
    assert all((text[:, i * 136 : (i + 1) * 136] < 100).any() for i in range(3))


def start(folder, *arguments):
    """Runs the program where importing TensorFlow ends it."""
    (folder / "tensorflow.py").write_text("raise SystemExit('TensorFlow is imported')")
    return subprocess.run(
        [sys.executable, "pipeline/predict.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        input="",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_dir=.", "none.png"], "'none.png' does not exist"),
        (["--model_dir=.", "no/*.png"], "'no/*.png' matches no image"),
        (["--model_dir=none", "README.md"], "'none' does not exist"),
        (["--model_dir=.", "-"], "list on standard input is empty"),
        (["--model_dir=.", "--picture=sheet.jpg", "README.md"], "PNG"),
        (["--model_dir=.", "--picture=none/sheet.png", "README.md"], "'none' does not exist"),
        (["--model_dir=.", "--json", "--csv", "README.md"], "not both"),
        (["--model_dir=.", "--top=0", "README.md"], "--top=0"),
    ],
)
def test_what_is_wrong_is_said_before_tensorflow_is_imported(tmp_path, arguments, message):
    done = start(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "TensorFlow is imported" not in done.stderr


def test_what_is_right_imports_tensorflow(tmp_path):
    assert "TensorFlow is imported" in start(tmp_path, "--model_dir=.", "README.md", "--json").stderr
