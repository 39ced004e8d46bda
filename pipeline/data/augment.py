"""From encoded bytes to images of the model's resolution: the one evaluation view, and the varied training view.

All functions are TensorFlow graph code on one image; all randomness is a function of a seed. Normalisation and
crops follow the NFNet authors' published input pipeline.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from pipeline.data.mixing import Mixing
from pipeline.data.randaugment import RandAugment

MEAN_RGB = np.array([0.485, 0.456, 0.406], np.float32) * 255
STDDEV_RGB = np.array([0.229, 0.224, 0.225], np.float32) * 255
# Evaluation leaves out a border, `padding` pixels of `size + padding`. The authors' has 32 pixels, 1/7 of 224; at lower
# resolutions that would cut off the object, so there the share stays what it is at 224.
CROP_PADDING = 32
MAX_CROP_PADDING = 1 / 7
# The geometry of the evaluation view. Of the authors, as they name it: the central square of the image without its
# border, resized; or all of the image, resized to a square whatever its shape, of which the centre is taken. And ours,
# for objects that fill the image: the central square with its border, resized.
CROP_RESIZE, RESIZE_CROP, SQUARE_RESIZE = "crop_resize", "resize_crop", "square_resize"
EVAL_VIEWS = (CROP_RESIZE, RESIZE_CROP, SQUARE_RESIZE)
_MOST_AREA = 4  # of a random crop, as a share of the image's: twice its height and width
# Images that are prepared at a time: hosts of TPUs have 112 to 240 cores. Fewer cores take them one after another.
PARALLEL_CALLS = 128


def normalize(images: tf.Tensor) -> tf.Tensor:
    """Maps RGB images, uint8 [..., 3], to the model's float32 input.

    The step does this on its own device: uint8 is a quarter of what has to reach it.
    """
    return (tf.cast(images, tf.float32) - MEAN_RGB) / STDDEV_RGB


def evaluation_view(encoded: tf.Tensor, size: int, view: str = CROP_RESIZE) -> tf.Tensor:
    """The view of an encoded image that evaluation, export and batch prediction share.

    Args:
      encoded: string [], a JPEG, PNG, GIF (its first frame) or BMP.
      size: pixels a side.
      view: one of `EVAL_VIEWS`. 'crop_resize' resizes the central square that holds size / (size + padding) of the
        shorter side; 'resize_crop' resizes the image to a square of size + padding and takes its centre;
        'square_resize' resizes the central square of the shorter side.

    Returns:
      The view, bicubic: uint8 [size, size, 3].
    """
    return view_of_decoded(decode(encoded), size, view)


def view_of_decoded(
    image: tf.Tensor, size: int, view: str = CROP_RESIZE, mirrored: tf.Tensor | Sequence[int] = (0, 0)
) -> tf.Tensor:
    """`evaluation_view` of an image that is decoded already, or of several of one height and width.

    Args:
      image: uint8 [..., height, width, 3].
      size, view: as of `evaluation_view`.
      mirrored: int [2], 1 for rows and columns that the caller will reverse, else 0. A crop that cannot be central to
        the pixel is then where that of the reversed image is.

    Returns:
      uint8 [..., size, size, 3].
    """
    padding = min(CROP_PADDING, MAX_CROP_PADDING * size)
    if view == RESIZE_CROP:
        image = _resize(image, int(size + padding))
        image = _square(image, *_central_square(image.shape[-3:], size, mirrored))
        return tf.ensure_shape(image, [*image.shape[:-3], size, size, 3])
    share = 1.0 if view == SQUARE_RESIZE else size / (size + padding)
    return _resize(_square(image, *_central_window(tf.shape(image)[-3:], share, mirrored)), size)


def _square(image: tf.Tensor, begin: tf.Tensor, extent: tf.Tensor) -> tf.Tensor:
    end = begin + extent
    return image[..., begin[0] : end[0], begin[1] : end[1], :]


def _central_window(
    shape: tf.Tensor, share: float, mirrored: tf.Tensor | Sequence[int] = (0, 0)
) -> tuple[tf.Tensor, tf.Tensor]:
    """Begin and size, int32 [3] each, of the central square that holds `share` of an image's shorter side."""
    side = tf.cast(tf.round(tf.cast(tf.minimum(shape[0], shape[1]), tf.float32) * share), tf.int32)
    return _central_square(shape, side, mirrored)


def _central_square(
    shape: tf.Tensor | tf.TensorShape, side: tf.Tensor | int, mirrored: tf.Tensor | Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor]:
    begin = [(shape[axis] - side + 1 - mirrored[axis]) // 2 for axis in (0, 1)]
    return tf.stack([*begin, 0]), tf.stack([side, side, 3])


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training image is varied.

    Attributes:
      min_area, max_area: area of the random crop as a share of the image's; with a `max_area` above 1 as a share of its
        central square, of which a crop then holds at most so many times the area, around it. Beyond the image its
        outermost pixels are repeated. So objects are seen larger and smaller than in the view 'square_resize'.
      min_ratio, max_ratio: width over height of the crop.
      min_object_covered: least share of the object that the crop keeps. The object is the whole image, so this is a
        second least area. Where it is set, an image of which no such crop is found gives the evaluation's central one.
      flip: whether half the images are mirrored.
      randaugment: operations drawn for each image; None for none.
      mixing: mixup and cutmix within a batch; None for none.
      mix_first: whether RandAugment acts on mixed images, as in the NFNet authors' recipe, or mixing on its results.
      erasing: share of the images in which a rectangle is erased.
      repeats: views of each example in a batch (repeated augmentation, arXiv 2105.13343); they follow each other.
    """

    min_area: float = 0.08
    max_area: float = 1.0
    min_ratio: float = 3 / 4
    max_ratio: float = 4 / 3
    min_object_covered: float = 0.0
    flip: bool = True
    randaugment: RandAugment | None = None
    mixing: Mixing | None = None
    mix_first: bool = True
    erasing: float = 0.0
    repeats: int = 1

    def __post_init__(self):
        if not 0 < self.min_area <= self.max_area <= _MOST_AREA:
            raise ValueError(
                f"Augmentation.min_area is {self.min_area}, max_area {self.max_area}; expected 0 < min <= max <= "
                f"{_MOST_AREA}."
            )
        if not 0 < self.min_ratio <= self.max_ratio:
            raise ValueError(
                f"Augmentation.min_ratio is {self.min_ratio}, max_ratio {self.max_ratio}; expected 0 < min <= max."
            )
        if not 0 <= self.min_object_covered <= min(1, self.max_area):
            raise ValueError(
                f"Augmentation.min_object_covered is {self.min_object_covered}; expected a share from 0 to max_area, "
                f"{self.max_area}."
            )
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"Augmentation.erasing is {self.erasing}; expected a share from 0 to 1.")
        if self.repeats < 1:
            raise ValueError(f"Augmentation.repeats is {self.repeats}; expected 1 or more views of each example.")

    @property
    def group(self) -> int:
        """Images that are varied together; a replica's batch holds whole groups."""
        return self.mixing.group(self.repeats) if self.mixing else self.repeats

    def crop(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """The random crop of an encoded image, resized and perhaps mirrored: uint8 [size, size, 3]."""
        image = _resize(self._random_crop(encoded, _fold(seed, "crop"), size), size)
        return tf.image.stateless_random_flip_left_right(image, _fold(seed, "flip")) if self.flip else image

    def examples(
        self,
        encoded: tf.data.Dataset,
        size: int,
        prepare: Callable = lambda example: example,
        parallel_calls: int = PARALLEL_CALLS,
    ) -> tf.data.Dataset:
        """Varies a data set of examples, in order, with everything that is set.

        Images are mixed within groups of `group` consecutive ones, by the seed of the group's first: the result
        does not depend on how the images are batched or shared out, as long as no group is cut.

        Args:
          encoded: examples, after `prepare` with `image` (string []), `seed` (int32 [2]), `labels` int64 [k],
            `label_weights` float32 [k], `weight` float32 [], and other fields, which pass through. Their number times
            `repeats` must be a multiple of `group`, or the last ones are left out.
          size: pixels a side.
          prepare: of an example, in the stage that decodes it: what no later step uses is then not computed.
          parallel_calls: parallel calls of each stage.

        Returns:
          Examples with `image` uint8 [size, size, 3], and `labels` and `label_weights` of length 2k if mixed; without
          `seed`. Each example comes `repeats` times.
        """

        def over(dataset: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
            return dataset.map(function, num_parallel_calls=parallel_calls, deterministic=True)

        def finish(example):
            image = example["image"]
            if self.mixing is None or self.mix_first:
                image = self._randaugment(image, example["seed"])
            image = self._erase(image, example["seed"])
            return {name: value for name, value in example.items() if name != "seed"} | {"image": image}

        def view(example):
            image = self.crop(example["image"], example["seed"], size)
            if self.mixing is None:
                return finish(example | {"image": image})
            return example | {"image": image if self.mix_first else self._randaugment(image, example["seed"])}

        def views(example):
            example = prepare(example)
            seeds = [_fold(example["seed"], f"view {view}") for view in range(self.repeats)]
            each = [view(example | {"seed": seed}) for seed in seeds]
            return tf.nest.map_structure(lambda *values: tf.stack(values), *each)

        if self.repeats > 1:
            examples = over(encoded, views).unbatch()
        else:
            examples = over(encoded, lambda example: view(prepare(example)))
        if (mixing := self.mixing) is None:
            return examples

        def mix(group):
            seed = _fold(group["seed"][0], "mixing")
            return mixing(group, seed, self.repeats)

        return over(over(examples.batch(self.group, drop_remainder=True), mix).unbatch(), finish)

    def _randaugment(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return self.randaugment(image, _fold(seed, "randaugment")) if self.randaugment else image

    def _erase(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return random_erasing(image, _fold(seed, "erasing"), self.erasing) if self.erasing else image

    def _random_crop(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        if self.min_area == self.max_area == 1:
            return decode(encoded)  # nothing to draw: the only crop is the image
        # Area from which crops are taken, as a share of the image's, or of its square's.
        frame = max(1.0, self.max_area)
        border = (1 - frame**-0.5) / 2
        share = 1 - 2 * border if border else size / (size + min(CROP_PADDING, MAX_CROP_PADDING * size))

        def crop_window(shape):
            begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
                shape,
                tf.constant([[[border, border, 1 - border, 1 - border]]]),
                seed,
                min_object_covered=self.min_object_covered,
                aspect_ratio_range=(self.min_ratio, self.max_ratio),
                area_range=(self.min_area / frame, self.max_area / frame),
                max_attempts=10,
                use_image_if_no_bounding_boxes=True,
            )
            if not self.min_object_covered or self.min_area == 1:
                return begin, extent
            # The sampler gives the whole image where ten attempts have found nothing.
            failed = tf.reduce_all(extent[:2] == shape[:2])
            return tf.cond(failed, lambda: _central_window(shape, share), lambda: (begin, extent))

        def decode_window():  # of a JPEG only the window is decoded
            begin, extent = crop_window(tf.io.extract_jpeg_shape(encoded))
            window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
            return tf.io.decode_and_crop_jpeg(encoded, window, channels=3)

        def decode_all():
            image = decode(encoded)
            if border:
                image = _bordered_square(image, border / (1 - 2 * border))
            return tf.slice(image, *crop_window(tf.shape(image)))

        image = decode_all() if border else tf.cond(tf.io.is_jpeg(encoded), decode_window, decode_all)
        return tf.ensure_shape(image, [None, None, 3])


def _bordered_square(image: tf.Tensor, border: float) -> tf.Tensor:
    """The central square of an image, uint8 [height, width, 3], with `border` times its side around it.

    Beyond the image its outermost pixels are repeated.
    """
    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    begin, extent = _central_square(shape, side, (0, 0))
    added = tf.cast(tf.round(tf.cast(side, tf.float32) * border), tf.int32)
    for axis in (0, 1):
        places = begin[axis] + tf.range(-added, extent[axis] + added)
        image = tf.gather(image, tf.clip_by_value(places, 0, shape[axis] - 1), axis=axis)
    return image


def _fold(seed: tf.Tensor, purpose: str) -> tf.Tensor:
    """The seed, int32 [2], of one use of randomness among those of an image."""
    return tf.random.experimental.stateless_fold_in(seed, zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """The pixels of a JPEG, PNG, GIF (its first frame) or BMP, string []: uint8 [height, width, 3]."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Bicubic; uint8 [size, size, 3]."""
    resized = tf.image.resize(image, [size, size], tf.image.ResizeMethod.BICUBIC)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)


def random_erasing(image: tf.Tensor, seed: tf.Tensor, probability: float) -> tf.Tensor:
    """Sets a random rectangle of an image to the mean colour (random erasing, arXiv 1708.04896).

    The rectangle covers 2% to 33% of the image and is 0.3 to 3.3 times as high as wide; the first of ten drawn
    that fits into the image is taken.

    Args:
      image: uint8 [height, width, 3], of static shape.
      seed: int32 [2]; one seed always gives the same result.
      probability: share of the images that lose a rectangle.
    """
    height, width = image.shape[:2]
    random = tf.random.stateless_uniform([11, 4], seed)
    area = height * width * (0.02 + random[:10, 0] * (1 / 3 - 0.02))
    aspect = tf.exp(math.log(0.3) * (2 * random[:10, 1] - 1))
    high, wide = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    fits = (high < height) & (wide < width)
    chosen = tf.argmax(fits)
    high, wide = high[chosen], wide[chosen]
    top = tf.floor(random[chosen, 2] * (height - high + 1))
    left = tf.floor(random[chosen, 3] * (width - wide + 1))
    erase = fits[chosen] & (random[10, 0] < probability)

    def inside(length, start, extent):
        place = tf.range(length, dtype=tf.float32)
        return (place >= start) & (place < start + extent)

    hole = erase & inside(height, top, high)[:, None, None] & inside(width, left, wide)[:, None]
    return tf.where(hole, tf.cast(np.round(MEAN_RGB), tf.uint8), image)
