import io
import json

import numpy as np
import pytest
from PIL import Image

from examples import make_demo_images as demo
from tests.folders import digests


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "images"
    demo.make(folder, seed=3, pretrain_images_per_class=2, finetune_images_per_class=5, processes=2)
    return folder


def test_enough_classes_and_none_in_both_sets():
    assert len(demo.PRETRAIN_CLASSES) >= 40
    assert len(set(demo.FINETUNE_CLASSES)) == 10
    assert not set(demo.PRETRAIN_CLASSES) & set(demo.FINETUNE_CLASSES)
    # Pre-training shows each shape and each pattern that fine-tuning combines in new ways.
    for place in (0, 1):
        seen = {name.split("-")[place] for name in demo.PRETRAIN_CLASSES}
        assert {name.split("-")[place] for name in demo.FINETUNE_CLASSES} <= seen


def test_defaults_make_the_numbers_promised():
    defaults = demo.make.__kwdefaults__
    assert defaults["pretrain_images_per_class"] * len(demo.PRETRAIN_CLASSES) >= 8000
    assert defaults["finetune_images_per_class"] * len(demo.FINETUNE_CLASSES) == 2000


def test_folder_holds_ordinary_images_of_differing_sizes(small):
    broken = set(demo.broken_files(3))
    sizes, formats = set(), set()
    images = [path for path in small.glob("*/*/*") if str(path.relative_to(small)) not in broken]
    assert len(images) == 2 * len(demo.PRETRAIN_CLASSES) + 5 * len(demo.FINETUNE_CLASSES)
    for path in images:
        with Image.open(path) as image:
            image.load()
            assert image.mode == "RGB"
            assert min(image.size) >= 48 and max(image.size) <= 160
            assert {"JPEG": ".jpg", "PNG": ".png"}[image.format] == path.suffix
            sizes.add(image.size)
            formats.add(image.format)
    assert len(sizes) > 100
    assert formats == {"JPEG", "PNG"}


def test_broken_files_do_not_decode(small, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    broken = demo.broken_files(3)
    assert len(broken) == 12
    for path, data in broken.items():
        assert (small / path).read_bytes() == data
        with pytest.raises((OSError, SyntaxError, Image.DecompressionBombError)):
            Image.open(io.BytesIO(data)).load()


def test_same_bytes_for_one_seed_and_any_number_of_processes(small, tmp_path):
    demo.make(tmp_path / "again", 3, pretrain_images_per_class=2, finetune_images_per_class=5, processes=1)
    assert digests(tmp_path / "again") == digests(small)
    other = np.random.default_rng([4, 0]), np.random.default_rng([3, 0])
    assert demo.encode(demo.draw("star-dots", other[0]), other[0]) != demo.encode(
        demo.draw("star-dots", other[1]), other[1]
    )


def test_second_run_changes_nothing_and_other_images_are_refused(small, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    made = demo.make(small, 3, pretrain_images_per_class=2, finetune_images_per_class=5)
    assert made == json.loads((small / demo.MARKER).read_text())
    assert before == {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    with pytest.raises(ValueError, match=r"'seed': 3.*asked for.*'seed': 4.*remove that folder"):
        demo.make(small, 4, pretrain_images_per_class=2, finetune_images_per_class=5)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=f"holds no {demo.MARKER}"):
        demo.make(tmp_path)
    with pytest.raises(ValueError, match="at least one image"):
        demo.make(tmp_path / "none", pretrain_images_per_class=0)


def test_interrupted_run_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def full_disk(seed):
        if (tmp_path / "images.partial").exists():
            raise OSError("No space left on device")
        return {}

    with monkeypatch.context() as context:
        context.setattr(demo, "broken_files", full_disk)
        with pytest.raises(OSError, match="No space"):
            demo.make(tmp_path / "images", pretrain_images_per_class=1, finetune_images_per_class=1)
    assert not (tmp_path / "images").exists()
    demo.make(tmp_path / "images", pretrain_images_per_class=1, finetune_images_per_class=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_linear_model_on_pixels_learns_little():
    """Least squares with ridge on 24 x 24 pixels, trained on 900 images and tried on 600 others."""
    pixels, labels = [], []
    for label, name in enumerate(demo.FINETUNE_CLASSES):
        for number in range(150):
            image = Image.fromarray(demo.draw(name, np.random.default_rng([label, number])))
            pixels.append(np.asarray(image.resize((24, 24), Image.Resampling.BOX), np.float64).ravel() / 255)
            labels.append(label)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = np.array(pixels)[order], np.array(labels)[order]
    train, test = slice(0, 900), slice(900, None)
    mean = pixels[train].mean(axis=0)
    x, y = pixels - mean, np.eye(10)[labels] - 0.1
    weights = x[train].T @ np.linalg.solve(x[train] @ x[train].T + 100 * np.eye(900), y[train])
    accuracy = np.mean(np.argmax(x[test] @ weights, axis=1) == labels[test])
    assert accuracy < 0.25, "ten classes: chance is 0.10, a small ConvNet reaches 0.9"
