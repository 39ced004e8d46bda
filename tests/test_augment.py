import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.data import augment
from pipeline.data.mixing import Mixing
from pipeline.data.randaugment import RandAugment

SEED = tf.constant([3, 4])


def encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def views(augmentation: augment.Augmentation, encoded: bytes, seeds, size: int) -> list[np.ndarray]:
    """The varied views of one encoded image under each of the seeds."""
    seeds = tf.data.Dataset.from_tensor_slices(np.asarray(seeds, np.int32))
    examples = augmentation.examples(seeds.map(lambda seed: {"image": encoded, "seed": seed}), size)
    return [example["image"] for example in examples.as_numpy_iterator()]


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose red is the column and whose green is the row, both as shares of 255."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), 0 * x], -1).round().astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def cubic_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Keys' cubic (a = -0.5) at pixel centres, one axis after the other, the weights of missing pixels left out."""

    def along(values, axis):
        length = values.shape[axis]
        place = (np.arange(size) + 0.5) * length / size - 0.5
        taps = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
        distance = np.abs(place[:, None] - taps)
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance <= 1, near, far) * ((taps >= 0) & (taps < length))
        weights /= weights.sum(1, keepdims=True)
        rows = np.take(values, np.clip(taps, 0, length - 1), axis)
        return np.moveaxis(np.einsum("st,st...->s...", weights, np.moveaxis(rows, (axis, axis + 1), (0, 1))), 0, axis)

    return np.clip(along(along(image.astype(float), 0), 1), 0, 255)


def test_normalize_by_hand():
    image = noise(5, 6)
    expected = (image / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(augment.normalize(image), expected, atol=1e-5)


@pytest.mark.parametrize("height, width, size", [(100, 140, 64), (140, 100, 64), (50, 45, 96), (400, 300, 224)])
def test_evaluation_view_is_the_resized_central_square(height, width, size):
    image = noise(height, width)
    side = round(min(height, width) * size / (size + min(32, size / 7)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    expected = cubic_resize(image[top : top + side, left : left + side], size)
    found = augment.evaluation_view(encode(image), size)
    assert found.shape == (size, size, 3) and found.dtype == tf.uint8
    np.testing.assert_allclose(found, expected, atol=0.8)


def pillow_resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pillow's bicubic resize, in floating point. Where it enlarges it has no antialias, as TensorFlow's."""
    assert width >= image.shape[1] and height >= image.shape[0]
    channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    resized = [channel.resize((width, height), Image.Resampling.BICUBIC) for channel in channels]
    return np.clip(np.stack(resized, -1), 0, 255)


@pytest.mark.parametrize("height, width, size", [(100, 140, 224), (200, 150, 256), (50, 45, 96)])
@pytest.mark.parametrize("view", augment.EVAL_VIEWS)
def test_the_evaluation_views_are_what_pillow_makes(view, height, width, size):
    image, border = noise(height, width), min(32, int(size / 7))
    if view == "resize_crop":  # the whole image as a square, whatever its shape, and then its centre
        resized = pillow_resize(image, size + border, size + border)
        start = (border + 1) // 2
        expected = resized[start : start + size, start : start + size]
    else:
        share = 1 if view == "square_resize" else size / (size + min(32, size / 7))
        side = round(min(height, width) * share)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        square = Image.fromarray(image).crop((left, top, left + side, top + side))
        expected = pillow_resize(np.asarray(square), size, size)
    found = augment.evaluation_view(encode(image), size, view)
    assert found.shape == (size, size, 3)
    np.testing.assert_allclose(found, expected, atol=0.8)


def test_the_authors_view_of_a_large_image():
    """`resize_crop_32` without antialias: every pixel of the view is one of the squashed image's."""
    image = noise(400, 300)
    expected = cubic_resize(image, 256)[16:240, 16:240]
    found = augment.evaluation_view(encode(image), 224, "resize_crop")
    np.testing.assert_allclose(found, expected, atol=0.8)


def test_every_format_gives_the_same_view():
    image = np.repeat(np.repeat(noise(6, 8) // 64 * 64, 8, 0), 8, 1)  # few colours, so that GIF keeps them
    expected = augment.evaluation_view(encode(image), 32).numpy().astype(int)
    for kind, options in (("BMP", {}), ("GIF", {}), ("WEBP", {"lossless": True})):
        found = augment.evaluation_view(encode(image, kind, **options), 32).numpy()
        assert np.abs(found - expected).max() <= 1, kind
    frames = [Image.fromarray(image), Image.fromarray(255 - image)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    found = augment.evaluation_view(buffer.getvalue(), 32).numpy()
    assert np.abs(found - expected).max() <= 1, "the first frame of an animation"
    grey = encode(image[:, :, 0], "JPEG", quality=95)
    assert augment.evaluation_view(grey, 32).shape == (32, 32, 3)


def window(view: tf.Tensor, height: int, width: int) -> tuple[float, float, bool]:
    """Height and width in pixels that a view of `coordinates` shows, and whether it is mirrored."""
    shown = np.asarray(view).astype(float)
    size = len(shown)
    slope_x = (shown[:, -4, 0] - shown[:, 3, 0]).mean() / (size - 7) * (width - 1) / 255
    slope_y = (shown[-4, :, 1] - shown[3, :, 1]).mean() / (size - 7) * (height - 1) / 255
    return slope_y * size, abs(slope_x) * size, slope_x < 0


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0})])
def test_random_crops_keep_to_their_limits(kind, options):
    height, width = 160, 200
    encoded = encode(coordinates(height, width), kind, **options)
    augmentation = augment.Augmentation(min_area=0.2, max_area=0.6, min_ratio=0.8, max_ratio=1.25)
    found = views(augmentation, encoded, np.arange(400).reshape(200, 2), 32)
    high, wide, mirrored = np.array([window(view, height, width) for view in found]).T
    area, ratio = high * wide / (height * width), wide / high
    assert area.min() > 0.17 and area.max() < 0.64 and area.std() > 0.08
    assert ratio.min() > 0.75 and ratio.max() < 1.35 and ratio.std() > 0.08
    assert 70 < mirrored.sum() < 130


def areas(augmentation: augment.Augmentation, count: int) -> np.ndarray:
    """Shares of a 100 x 140 image that `count` crops show."""
    found = views(augmentation, encode(coordinates(100, 140)), np.arange(2 * count).reshape(count, 2), 32)
    return np.array([np.prod(window(view, 100, 140)[:2]) for view in found]) / (100 * 140)


def test_the_authors_sampler_refuses_crops_of_less_than_a_tenth_of_the_object():
    free = areas(augment.Augmentation(), 300)
    authors = areas(augment.Augmentation(min_object_covered=0.1), 300)
    assert 0.02 < (free < 0.095).mean() < 0.12
    assert authors.min() > 0.095 and (authors < 0.2).any()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_without_a_crop_gives_its_centre_as_the_authors_code_does(kind):
    """A strip so long that no crop of a fifth of it has the ratios asked for."""
    image = encode(noise(16, 800), kind)
    asked = {"min_area": 0.2, "flip": False}
    (free,) = views(augment.Augmentation(**asked), image, [[3, 4]], 32)
    (centre,) = views(augment.Augmentation(min_object_covered=0.1, **asked), image, [[3, 4]], 32)
    np.testing.assert_array_equal(centre, augment.evaluation_view(image, 32))
    assert np.abs(free.astype(float) - centre).mean() > 5  # the whole strip, squashed


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_crop_larger_than_the_square_holds_what_is_around_it(kind):
    encoded = encode(noise(40, 60), kind)
    square = np.pad(tf.io.decode_image(encoded, channels=3), ((4, 4), (0, 0), (0, 0)), mode="edge")[:, 6:54]
    all_of_it = augment.Augmentation(min_area=1.44, max_area=1.44, min_ratio=1.0, max_ratio=1.0, flip=False)
    (found,) = views(all_of_it, encoded, [[3, 4]], 56)
    np.testing.assert_allclose(found, cubic_resize(square, 56), atol=0.8)


def test_crops_up_to_a_larger_area_show_objects_smaller_and_larger():
    image = np.zeros((80, 80, 3), np.uint8)
    image[1:-1, 1:-1] = 255
    augmentation = augment.Augmentation(min_area=0.7, max_area=1.3, flip=False, min_object_covered=0.8)
    found = np.array(views(augmentation, encode(image), np.arange(600).reshape(300, 2), 40))
    shown = (found[..., 0] > 127).mean((1, 2))
    assert 0.6 < shown.min() < 0.75 and shown.max() > 0.98  # of the view; the image is 1 / 1.3 of the largest crop
    smaller = (found[:, 20, [0, -1], 0] < 127).all(1) & (found[:, [0, -1], 20, 0] < 127).all(1)
    assert 0.05 < smaller.mean() < 0.6


def test_jpeg_window_is_the_window_of_the_decoded_image():
    jpeg = encode(np.kron(noise(12, 15), np.ones((12, 12, 1), np.uint8)), "JPEG", quality=95, subsampling=0)
    png = tf.io.encode_png(tf.io.decode_jpeg(jpeg)).numpy()
    seeds = [[number, 1] for number in range(5)]
    both = [views(augment.Augmentation(), image, seeds, 48) for image in (jpeg, png)]
    np.testing.assert_array_equal(*both)


def test_view_depends_on_the_seed_alone():
    encoded = encode(noise(60, 80), "JPEG")
    augmentation = augment.Augmentation(randaugment=RandAugment(2, 5), erasing=0.5)
    first, again, other = views(augmentation, encoded, [[3, 4], [3, 4], [4, 3]], 24)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("sides", [(40, 40), (30, 47)])
def test_without_any_variation_the_view_is_the_whole_image(sides, form):
    plain = augment.Augmentation(min_area=1.0, flip=False, min_object_covered=0.1)
    encoded = encode(noise(*sides), form)
    image = tf.io.decode_image(encoded, channels=3).numpy()
    expected = cubic_resize(image, 56)
    (found,) = views(plain, encoded, [[3, 4]], 56)
    np.testing.assert_allclose(found, expected, atol=0.8)
    inverted = plain.__class__(**{**plain.__dict__, "randaugment": RandAugment(1, 5, operations=("Invert",))})
    (found,) = views(inverted, encoded, [[3, 4]], 56)
    np.testing.assert_allclose(found, 255 - expected, atol=0.8)


def test_random_erasing():
    image = tf.ones([40, 60, 3], tf.uint8)
    seeds = tf.data.Dataset.from_tensor_slices(np.arange(800, dtype=np.int32).reshape(400, 2))
    erased = seeds.map(lambda seed: augment.random_erasing(image, seed, 0.5)).as_numpy_iterator()
    shares = []
    for result in erased:
        hole = np.all(result == [124, 116, 104], -1)  # the mean colour
        assert np.all((result == 1) | hole[..., None])
        if hole.any():
            rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
            assert hole.sum() == len(rows) * len(columns)
            assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert 0.25 < len(rows) / len(columns) < 4
            shares.append(hole.mean())
    assert 150 < len(shares) < 250
    assert 0.015 < min(shares) < 0.06 and 0.25 < max(shares) < 0.35
    assert np.array_equal(augment.random_erasing(image, SEED, 0.0), image)


def parsed(count: int) -> tf.data.Dataset:
    """Encoded examples as the reader gives them; the last one's slot is empty."""
    images = [encode(noise(30, 40, seed=i), "JPEG" if i % 2 else "PNG") for i in range(count)]
    numbers = np.arange(count)
    return tf.data.Dataset.from_tensor_slices(
        {
            "image": images,
            "seed": np.stack([numbers, numbers + 7], 1).astype(np.int32),
            "labels": numbers[:, None],
            "label_weights": np.ones((count, 1), np.float32),
            "weight": (numbers < count - 1).astype(np.float32),
            "id": numbers * 11,
        }
    )


def collect(dataset: tf.data.Dataset) -> dict[str, np.ndarray]:
    elements = list(dataset.as_numpy_iterator())
    return {name: np.stack([element[name] for element in elements]) for name in elements[0]}


def test_examples_without_mixing_are_the_views_in_order():
    augmentation = augment.Augmentation(randaugment=RandAugment(2, 5), erasing=0.3)
    found = collect(augmentation.examples(parsed(6), 24))
    alone = [views(augmentation, e["image"], [e["seed"]], 24)[0] for e in parsed(6).as_numpy_iterator()]
    np.testing.assert_array_equal(found["image"], alone)
    assert np.array_equal(found["id"], np.arange(6) * 11)
    assert "seed" not in found


def test_repeated_augmentation():
    found = collect(augment.Augmentation(repeats=3).examples(parsed(4), 24))
    assert np.array_equal(found["id"], np.repeat(np.arange(4) * 11, 3))
    assert np.array_equal(found["labels"][:, 0], np.repeat(np.arange(4), 3))
    assert len({image.tobytes() for image in found["image"]}) == 12


@pytest.mark.parametrize("mix_first", [True, False])
@pytest.mark.parametrize("repeats", [1, 2])
def test_mixed_examples(mix_first, repeats):
    """Mixup of known views; Posterize tells whether RandAugment came before or after."""
    arguments = {"repeats": repeats, "mix_first": mix_first, "randaugment": RandAugment(1, 5, ("Posterize",))}
    mixed = collect(augment.Augmentation(mixing=Mixing(5.0, cutmix=False), **arguments).examples(parsed(8), 24))
    plain = collect(augment.Augmentation(repeats=repeats).examples(parsed(8), 24))
    pixels = plain["image"].astype(float)
    assert np.array_equal(mixed["id"], np.repeat(np.arange(8) * 11, repeats))
    for i, (labels, weights) in enumerate(zip(mixed["labels"], mixed["label_weights"], strict=True)):
        partner = i + repeats if (i // repeats) % 2 == 0 else i - repeats
        assert list(labels) == [i // repeats, partner // repeats]
        both = [pixels[i], pixels[partner]]
        if i // repeats >= 6:  # the last slot is empty, so its pair stays as it is
            assert list(weights) == [1, 0]
        if mix_first:
            expected = np.round(weights[0] * both[0] + weights[1] * both[1]) // 64 * 64
        else:
            expected = weights[0] * (both[0] // 64 * 64) + weights[1] * (both[1] // 64 * 64)
        assert np.mean(np.abs(mixed["image"][i] - expected) <= 1) > 0.97


def test_groups_make_mixing_independent_of_the_share():
    """Two hosts, each with whole groups of the examples, see what one host sees."""
    augmentation = augment.Augmentation(mixing=Mixing(), randaugment=RandAugment(2, 5))
    assert augmentation.group == 4
    whole = collect(augmentation.examples(parsed(16), 24, parallel_calls=2))
    hosts = [collect(augmentation.examples(parsed(16).skip(8 * host).take(8), 24)) for host in range(2)]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([host[name] for host in hosts]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"min_area": 0.0}, "min_area is 0.0"),
        ({"min_area": 0.9, "max_area": 0.5}, "min_area is 0.9, max_area 0.5"),
        ({"max_area": 5.0}, "max_area 5.0; expected 0 < min <= max <= 4"),
        ({"min_ratio": 2.0}, "min_ratio is 2.0"),
        ({"erasing": 1.5}, "erasing is 1.5"),
        (
            {"max_area": 0.5, "min_object_covered": 0.6},
            "min_object_covered is 0.6; expected a share from 0 to max_area",
        ),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        augment.Augmentation(**arguments)
