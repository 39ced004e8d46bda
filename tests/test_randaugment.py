"""Each operation against Pillow or NumPy, then against the Model Garden, then the policy that draws them."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data import randaugment as ra


def picture(height=37, width=52, seed=0) -> np.ndarray:
    """Smooth colours with noise; no channel covers 0..255, so that there is contrast to stretch."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([30 + 2 * x, 20 + 3 * y, 160 - x - y], -1)
    return np.clip(smooth + random.normal(0, 15, smooth.shape), 3, 240).astype(np.uint8)


IMAGE = picture()
PILLOW = Image.fromarray(IMAGE)


def assert_close(found, expected, levels: int, share: float = 1.0) -> None:
    """At least `share` of the values differ by at most `levels`."""
    difference = np.abs(np.asarray(found, int) - np.asarray(expected, int))
    assert np.mean(difference <= levels) >= share, f"differ by up to {difference.max()}"


@pytest.mark.parametrize(
    "found, expected, levels",
    [
        (ra.invert(IMAGE), ImageOps.invert(PILLOW), 0),
        (ra.autocontrast(IMAGE), ImageOps.autocontrast(PILLOW), 1),
        (ra.equalize(IMAGE), ImageOps.equalize(PILLOW), 0),
        *((ra.posterize(IMAGE, bits), ImageOps.posterize(PILLOW, bits), 0) for bits in (1, 2, 6, 8)),
        *((ra.solarize(IMAGE, t), ImageOps.solarize(PILLOW, t), 0) for t in (0, 100, 128, 255)),
        *((ra.brightness(IMAGE, f), ImageEnhance.Brightness(PILLOW).enhance(f), 1) for f in (0.1, 1.0, 2.8)),
        # Pillow rounds the grey picture and the smoothed one before it extrapolates from them.
        *((ra.color(IMAGE, f), ImageEnhance.Color(PILLOW).enhance(f), 2) for f in (0.1, 1.0, 2.8)),
        *((ra.sharpness(IMAGE, f), ImageEnhance.Sharpness(PILLOW).enhance(f), 2) for f in (0.1, 1.0, 2.8)),
    ],
)
def test_operation_is_pillows(found, expected, levels):
    assert_close(found, expected, levels)


def test_contrast_is_about_each_channels_mean():
    for factor in (0.1, 1.0, 2.8):
        mean = IMAGE.mean((0, 1))
        expected = np.clip(mean + factor * (IMAGE.astype(float) - mean), 0, 255)
        assert_close(ra.contrast(IMAGE, factor), np.floor(expected), 1)


def test_solarize_add_by_hand():
    expected = np.where(IMAGE < 128, np.minimum(IMAGE.astype(int) + 165, 255), IMAGE)
    assert_close(ra.solarize_add(IMAGE, 165), expected, 0)


@pytest.mark.parametrize("pixels", [0, 1, 13, 100, -5, -100])
def test_translation_by_hand(pixels):
    for operation, axis in ((ra.translate_x, 1), (ra.translate_y, 0)):
        expected = np.full_like(IMAGE, 128)
        for target in range(IMAGE.shape[axis]):
            if 0 <= target + pixels < IMAGE.shape[axis]:
                line = [slice(None), slice(None)]
                source = line.copy()
                line[axis], source[axis] = target, target + pixels
                expected[tuple(line)] = IMAGE[tuple(source)]
        assert_close(operation(IMAGE, float(pixels)), expected, 0)


@pytest.mark.parametrize("degrees", [17.0, -31.0, 45.0, 88.0, 180.0])
def test_rotation_is_pillows(degrees):
    expected = PILLOW.rotate(degrees, Image.Resampling.NEAREST, fillcolor=(128, 128, 128))
    # Which of two pixels equally far is the nearest is a matter of rounding.
    assert_close(ra.rotate(IMAGE, tf.constant(degrees)), expected, 0, share=0.97)


@pytest.mark.parametrize("level", [0.13, -0.29, 0.47])
def test_shear_by_hand(level):
    height, width, _ = IMAGE.shape
    for operation, sheared in ((ra.shear_x, 0), (ra.shear_y, 1)):
        expected = np.full_like(IMAGE, 128)
        for y in range(height):
            for x in range(width):
                source_x = x + int(np.floor(level * y + 0.5)) if sheared == 0 else x
                source_y = y + int(np.floor(level * x + 0.5)) if sheared == 1 else y
                if 0 <= source_x < width and 0 <= source_y < height:
                    expected[y, x] = IMAGE[source_y, source_x]
        assert_close(operation(IMAGE, tf.constant(level)), expected, 0, share=0.999)


@pytest.mark.parametrize("centre", [(0, 0), (20, 30), (36, 51)])
def test_cutout_by_hand(centre):
    y, x = np.mgrid[:37, :52]
    hole = (centre[0] - 8 <= y) & (y < centre[0] + 8) & (centre[1] - 8 <= x) & (x < centre[1] + 8)
    expected = np.where(hole[..., None], 128, IMAGE)
    assert_close(ra.cutout(IMAGE, 8, *map(tf.constant, centre)), expected, 0)


def test_images_of_one_colour_stay_whole():
    plain = np.full((8, 9, 3), (7, 0, 255), np.uint8)
    for operation in (ra.autocontrast, ra.equalize):
        assert_close(operation(plain), plain, 0)
    assert_close(ra.contrast(plain, 2.8), plain, 1)


def test_operations_agree_with_the_model_garden():
    from official.vision.ops import augment as garden

    image = tf.constant(IMAGE)

    def moved(transform):  # the Garden's own rotation and shear fill by reflection, whatever they are told
        wrapped = garden.transform(garden.wrap(image), transform, fill_mode="constant")
        return garden.unwrap(wrapped, [128, 128, 128])

    turn = garden._convert_angles_to_transform(17.0 * np.pi / 180, 52.0, 37.0)[0]
    for found, expected, levels in [
        (ra.autocontrast(image), garden.autocontrast(image), 1),
        (ra.equalize(image), garden.equalize(image), 0),
        (ra.invert(image), garden.invert(image), 0),
        (ra.posterize(image, 6), garden.posterize(image, 6), 0),
        (ra.solarize(image, 128), garden.solarize(image, 128), 0),
        (ra.solarize_add(image, 165), garden.solarize_add(image, 165), 0),
        (ra.color(image, 2.8), garden.color(image, 2.8), 3),
        (ra.contrast(image, 2.8), garden.contrast(image, 2.8), 1),
        (ra.brightness(image, 2.8), garden.brightness(image, 2.8), 0),
        (ra.sharpness(image, 2.8), garden.sharpness(image, 2.8), 2),
        (ra.rotate(image, tf.constant(17.0)), moved(turn), 0),
        (ra.shear_x(image, tf.constant(0.29)), moved([1, 0.29, 0, 0, 1, 0, 0, 0]), 0),
        (ra.shear_y(image, tf.constant(0.29)), moved([1, 0, 0, 0.29, 1, 0, 0, 0]), 0),
        (ra.translate_x(image, tf.constant(9.0)), moved([1, 0, 9, 0, 1, 0, 0, 0]), 0),
    ]:
        assert_close(found, expected, levels, share=0.999)


@pytest.mark.parametrize(
    "magnitude, degrees, bits, threshold, factor, shear, pixels, half_side, addition",
    [
        (5, 15.0, 2, 128, 1.0, 0.15, 50.0, 20, 55),
        (10, 30.0, 4, 0, 1.9, 0.3, 100.0, 40, 110),
        (15, 45.0, 6, 128, 2.8, 0.45, 150.0, 60, 165),
    ],
)
def test_strengths_are_the_authors(magnitude, degrees, bits, threshold, factor, shear, pixels, half_side, addition):
    """The expected arguments are worked out by hand from the authors' table."""
    policy = ra.RandAugment(4, magnitude)
    image = picture(200, 180)
    for random in ((0.1, 0.6, 0.2), (0.9, 0.6, 0.2)):
        sign = 1 if random[0] < 0.5 else -1
        cutout_centre = tf.constant(int(200 * random[0])), tf.constant(int(180 * 0.6))
        for name, expected in {
            "AutoContrast": ra.autocontrast(image),
            "Equalize": ra.equalize(image),
            "Invert": ra.invert(image),
            "Rotate": ra.rotate(image, tf.constant(sign * degrees)),
            "Posterize": ra.posterize(image, bits),
            "Solarize": ra.solarize(image, threshold),
            "Color": ra.color(image, factor),
            "Contrast": ra.contrast(image, factor),
            "Brightness": ra.brightness(image, factor),
            "Sharpness": ra.sharpness(image, factor),
            "ShearX": ra.shear_x(image, tf.constant(sign * shear)),
            "ShearY": ra.shear_y(image, tf.constant(sign * shear)),
            "TranslateX": ra.translate_x(image, tf.constant(sign * pixels)),
            "TranslateY": ra.translate_y(image, tf.constant(sign * pixels)),
            "Cutout": ra.cutout(image, half_side, *cutout_centre),
            "SolarizeAdd": ra.solarize_add(image, addition),
        }.items():
            found = policy.operation(name)(tf.constant(image), tf.constant(random))
            assert_close(found, expected, 1, share=0.999)
    assert len(ra.OPERATIONS) == 16


def run(policy: ra.RandAugment, image: np.ndarray, seeds: np.ndarray, parallel: int = 2) -> np.ndarray:
    dataset = tf.data.Dataset.from_tensor_slices(seeds.astype(np.int32))
    dataset = dataset.map(lambda seed: policy(tf.constant(image), seed), num_parallel_calls=parallel)
    return np.stack([np.asarray(result) for result in dataset.as_numpy_iterator()])


def test_policy_applies_what_it_drew_in_turn():
    policy = ra.RandAugment(3, 7, operations=("Invert", "Solarize", "TranslateX", "Cutout"))
    seeds = np.stack([np.arange(20), np.arange(20) + 5], 1)
    for seed, found in zip(seeds, run(policy, IMAGE, seeds), strict=True):
        expected = tf.constant(IMAGE)
        for choice, *random in tf.random.stateless_uniform([3, 4], seed).numpy():
            expected = policy.operation(policy.operations[int(choice * 4)])(expected, tf.constant(random))
        assert_close(found, expected, 0)


def test_policy_depends_on_the_seed_alone():
    policy = ra.RandAugment(4, 15, translate_pixels=10, cutout_pixels=5)
    seeds = np.stack([np.arange(40), np.full(40, 3)], 1)
    first = run(policy, IMAGE, seeds)
    assert np.array_equal(first, run(policy, IMAGE, seeds, parallel=1))
    assert np.array_equal(first[::-1], run(policy, IMAGE, seeds[::-1]))
    assert len({image.tobytes() for image in first}) > 35


def test_each_operation_is_drawn_equally_often():
    # Four operations that leave four different marks on a black image.
    policy = ra.RandAugment(1, 8, operations=("Invert", "SolarizeAdd", "Posterize", "Equalize"))
    black = np.zeros((2, 2, 3), np.uint8)
    values = run(policy, black, np.stack([np.arange(600), np.zeros(600)], 1))[:, 0, 0, 0]
    marks = {255: 0, int(110 * 0.8): 0, 0: 0}
    for value in values:
        marks[int(value)] += 1
    assert 110 < marks[255] < 190 and 110 < marks[88] < 190 and 250 < marks[0] < 350


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layers": 0, "magnitude": 5}, "layers is 0; expected 1 or more"),
        ({"layers": 2, "magnitude": 31}, "magnitude is 31; expected 0 to 30"),
        ({"layers": 2, "magnitude": 5, "operations": ("Blur",)}, "unknown .'Blur'.; expected some of .'AutoContrast'"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ra.RandAugment(**arguments)
