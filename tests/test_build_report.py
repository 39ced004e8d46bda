"""The report of a build: its contact sheets, and its figure of many classes."""

import os

import numpy as np
from PIL import Image

from tests import ingest_images
from tests.ingest_builds import build, refusals


def test_the_report_shows_what_was_written_refused_and_found_twice(tmp_path):
    colours = {"red": (254, 0, 0), "blue": (0, 0, 254), "none": (245, 245, 245)}
    red, blue = (ingest_images.encode(Image.new("RGB", (side, side), c)) for side, c in ((200, "red"), (90, "blue")))
    for name, data in {"a": red, "small": blue, "words": b"words", "red again": red}.items():
        ingest_images.write(tmp_path / "source" / "c" / f"{name}.jpg", data)

    def shown(picture: str) -> list[str]:
        """The colour in the middle of each tile of a contact sheet of one row."""
        sheet = np.asarray(Image.open(tmp_path / "set" / picture)).astype(int)
        middles = sheet[68, 68::136]
        return [min(colours, key=lambda name: np.abs(middle - colours[name]).sum()) for middle in middles]

    flags = ["--duplicates=keep_first", "--shards=1", "--min_side=100"]
    build(tmp_path / "source", tmp_path / "set", *flags)
    assert shown("report_images.jpg") == ["red"] and shown("report_duplicates.jpg") == ["red", "red"]
    reasons = list(refusals(tmp_path / "set").values())
    assert dict(zip(reasons, shown("report_rejected.jpg"), strict=True)) == {
        "duplicate": "red",
        "too_small": "blue",
        "undecodable": "none",
    }
    assert "{{" not in (tmp_path / "set" / "rejected.jsonl").read_text()
    os.remove(tmp_path / "source" / "c" / "red again.jpg")
    build(tmp_path / "source", tmp_path / "set", *flags)
    assert not (tmp_path / "set" / "report_duplicates.jpg").exists()


def test_the_sheet_of_the_refused_shows_what_can_be_decoded(tmp_path):
    """The first half of a cut image, and transparency on white, as records have it."""
    whole = ingest_images.encode(ingest_images.picture(0, 128, 128), "PNG")
    ingest_images.write(tmp_path / "source" / "c" / "cut.png", whole[: len(whole) // 2])
    clear = ingest_images.encode(Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "PNG")
    ingest_images.write(tmp_path / "source" / "c" / "clear.png", clear)
    ingest_images.write(tmp_path / "source" / "c" / "good.jpg", ingest_images.encode(ingest_images.picture(1, 99, 99)))
    build(tmp_path / "source", tmp_path / "set", "--shards=1", "--min_side=64")
    sheet = np.asarray(Image.open(tmp_path / "set" / "report_rejected.jpg").convert("L")).astype(float)
    tiles = dict(zip(refusals(tmp_path / "set").values(), (sheet[4:120, x : x + 128] for x in (4, 140)), strict=True))
    assert tiles["truncated"][:48].std() > 20
    assert tiles["too_small"].min() > 240


def test_the_report_of_thirty_thousand_classes(tmp_path):
    tree = ingest_images.folder_tree(tmp_path / "source", images=8)
    names = [f"class_{i}" for i in range(30_000)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    build(tree, tmp_path / "set", f"--classes={tmp_path}/classes.txt")
    assert "30,000 classes, 29,996 of them without an image" in (tmp_path / "set" / "report.md").read_text()
    figure = np.asarray(Image.open(tmp_path / "set" / "report_classes.png").convert("L"))
    assert figure.shape == (400, 700) and figure.std() > 10
