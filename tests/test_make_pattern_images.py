import collections
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from examples import make_pattern_images as patterns
from tests.folders import digests

SHARE = 0.004


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patterns") / "images"
    patterns.make(folder, share=SHARE, processes=2)
    return folder


def test_shards_hold_images_beside_their_classes(small):
    counts = collections.Counter()
    for path in small.rglob("*.tar"):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            assert [name.removesuffix(".jpg") for name in names[::2]] == [
                name.removesuffix(".cls") for name in names[1::2]
            ]
            labels = [archive.extractfile(name).read() for name in names[1::2]]
            with Image.open(io.BytesIO(archive.extractfile(names[0]).read())) as image:
                assert (image.mode, image.size) == ("RGB", (patterns.SIDE, patterns.SIDE))
        assert max(map(int, labels)) < patterns.SETS[path.parent.name].classes
        counts[f"{path.parent.name}/{path.stem.split('-')[0]}"] += len(labels)
    assert counts == {"pretrain/train": 512, "pretrain/validation": 16, "finetune/train": 16, "finetune/validation": 8}


def test_frequencies_fall_as_a_power_of_the_rank_and_an_offset():
    frequencies = patterns.Patterns("pretrain", seed=0).frequencies
    assert frequencies.sum() == pytest.approx(1)
    assert frequencies[0] / frequencies[[10, 999, 4_095]] == pytest.approx((np.array([21, 1_010, 4_106]) / 11) ** 1.3)
    assert np.ptp(patterns.Patterns("finetune", seed=0).frequencies) == 0


def test_a_pattern_can_be_seen_through_the_noise():
    """The image most like a drawn one, among all patterns at all places, is that of its class."""
    drawn, random = patterns.Patterns("finetune", seed=0), np.random.default_rng(1)
    side, right = patterns.PATTERN_SIDE, 0
    templates = drawn.images.reshape(len(drawn.images), -1).astype(np.float64)
    templates -= templates.mean(1, keepdims=True)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    for _ in range(20):
        image, label = drawn.draw(random)
        windows = np.lib.stride_tricks.sliding_window_view(image, (side, side, 3)).reshape(-1, side * side * 3)
        scores = (windows - windows.mean(1, keepdims=True)) @ templates.T
        right += drawn.classes[np.unravel_index(scores.argmax(), scores.shape)[1]] == label
    assert right >= 19


def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(small, tmp_path):
    patterns.make(tmp_path / "again", share=SHARE, processes=1)
    assert digests(tmp_path / "again") == digests(small)


def test_other_images_are_not_overwritten(small):
    before = digests(small)
    patterns.make(small, share=SHARE)
    with pytest.raises(ValueError, match=r"holds .*'seed': 0.*remove that folder or name another"):
        patterns.make(small, seed=1, share=SHARE)
    assert digests(small) == before
    with pytest.raises(ValueError, match="share is 0"):
        patterns.make(small, share=0)
