import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from pipeline.data.mixing import Mixing


def batch(size: int, height: int = 10, width: int = 14, dtype=np.uint8, labels: int = 1) -> dict:
    random = np.random.default_rng(size)
    image = random.integers(0, 256, (size, height, width, 3))
    return {
        "image": tf.constant(image.astype(dtype)),
        "labels": tf.constant(np.arange(size * labels).reshape(size, labels), tf.int64),
        "label_weights": tf.ones([size, labels]),
        "weight": tf.ones([size]),
        "id": tf.range(size, dtype=tf.int64),
    }


def arrays(mixed: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images as float, labels, label weights."""
    return mixed["image"].numpy().astype(float), mixed["labels"].numpy(), mixed["label_weights"].numpy()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_is_the_weighted_mean_that_the_labels_say(dtype):
    plain = batch(8, dtype=dtype)
    mixed = Mixing(mixup_alpha=0.7, cutmix=False)(plain, [1, 2])
    images, labels, weights = arrays(mixed)
    assert mixed["image"].dtype == dtype
    before = plain["image"].numpy().astype(float)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert np.ptp(weights[:, 0]) > 0.3
    for i in range(8):
        own, partner = labels[i]
        assert own == i and partner == (i + 1) % 8
        expected = weights[i, 0] * before[own] + weights[i, 1] * before[partner]
        np.testing.assert_allclose(images[i], expected, atol=0.501 if dtype == np.uint8 else 1e-3)
    assert np.array_equal(mixed["id"], plain["id"])


def test_cutmix_pastes_a_rectangle_as_large_as_the_labels_say():
    plain = batch(40)
    images, labels, weights = arrays(Mixing(mixup_alpha=0)(plain, [5, 6]))
    before = plain["image"].numpy()
    boxes = 0
    for i in range(40):
        own, partner = before[labels[i, 0]], before[labels[i, 1]]
        pasted = np.any(images[i] != own, -1)
        np.testing.assert_array_equal(images[i][pasted], partner[pasted])
        if pasted.any():
            boxes += 1
            rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
            assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        np.testing.assert_allclose(weights[i], [1 - pasted.mean(), pasted.mean()], atol=1e-6)
    assert boxes > 20


def test_half_the_batch_each_way():
    plain = batch(16)
    images, labels, _ = arrays(Mixing(mixup_alpha=2.0)(plain, [0, 9]))
    before = plain["image"].numpy()
    for i in range(16):
        half = range(0, 8) if i < 8 else range(8, 16)
        assert labels[i, 1] == half[(i - half[0] + 1) % 8]
        from_either = np.all((images[i] == before[labels[i, 0]]) | (images[i] == before[labels[i, 1]]))
        assert from_either == (i >= 8)


def test_shares_are_drawn_from_the_beta_distribution():
    plain = batch(3000, 1, 1)
    shares = arrays(Mixing(mixup_alpha=0.2, cutmix=False)(plain, [3, 4]))[2][:, 0]
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.2, 0.2).cdf).pvalue > 0.01


def test_cutmix_boxes_are_the_authors():
    """Sides of sqrt(1 - u) about a uniform centre, cut off at the border; simulated here pixel by pixel."""
    plain = batch(1500, 20, 20)
    found = arrays(Mixing(mixup_alpha=0)(plain, [3, 4]))[2][:, 0]
    random = np.random.default_rng(0)
    expected = []
    for _ in range(1500):
        half = int(20 * np.sqrt(1 - random.random()) / 2)
        spans = [np.clip([centre - half, centre + half], 0, 20) for centre in random.integers(0, 20, 2)]
        expected.append(1 - np.prod([end - start for start, end in spans]) / 400)
    assert scipy.stats.ks_2samp(found, expected).pvalue > 0.01


def test_views_of_one_example_never_meet():
    plain = batch(24) | {"labels": tf.repeat(tf.range(8, dtype=tf.int64), 3)[:, None]}
    _, labels, _ = arrays(Mixing()(plain, [1, 1], repeats=3))
    assert np.all(labels[:, 0] != labels[:, 1])
    assert np.array_equal(np.bincount(labels[:, 1]), np.full(8, 3))


def test_empty_slots_take_and_give_nothing():
    weight = np.ones(8, np.float32)
    weight[[2, 7]] = 0
    plain = batch(8) | {"weight": tf.constant(weight)}
    images, labels, weights = arrays(Mixing(mixup_alpha=3.0)(plain, [4, 4]))
    before = plain["image"].numpy()
    for i in range(8):
        if weight[labels[i, 0]] == 0 or weight[labels[i, 1]] == 0:
            np.testing.assert_array_equal(images[i], before[i])
            np.testing.assert_array_equal(weights[i], [1, 0])
        elif i < 4:
            assert np.any(images[i] != before[i])


def test_several_weighted_labels():
    weights = tf.constant([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    plain = batch(4, labels=3) | {"label_weights": weights}
    _, labels, mixed = arrays(Mixing(mixup_alpha=1.0, cutmix=False)(plain, [8, 8]))
    assert np.array_equal(labels[0], [0, 1, 2, 3, 4, 5])
    share = mixed[0, :3].sum()
    np.testing.assert_allclose(mixed[0], np.concatenate([share * weights[0], (1 - share) * weights[1]]), atol=1e-6)


def test_same_seed_same_result_inside_a_data_set():
    plain = batch(8)
    seeds = tf.data.Dataset.from_tensor_slices(tf.constant([[1, 2], [1, 2], [1, 3]]))
    first, second, third = seeds.map(lambda seed: Mixing()(plain, seed)["image"]).as_numpy_iterator()
    assert np.array_equal(first, second) and not np.array_equal(first, third)
    assert np.array_equal(first, Mixing()(plain, [1, 2])["image"])


def test_odd_batches():
    """One way of mixing takes any batch of two or more."""
    for size in (2, 3, 5):
        _, labels, _ = arrays(Mixing(cutmix=False)(batch(size), [0, 0]))
        assert sorted(labels[:, 1]) == list(range(size))
        assert np.all(labels[:, 0] != labels[:, 1])


@pytest.mark.parametrize("arguments", [{"mixup_alpha": -1.0}, {"mixup_alpha": 0.0, "cutmix": False}])
def test_settings_out_of_range(arguments):
    with pytest.raises(ValueError, match="mixup_alpha"):
        Mixing(**arguments)
