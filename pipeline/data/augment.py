"""From encoded bytes to the model's input: the one evaluation view, and the varied training view.

All functions are TensorFlow graph code on one image; all randomness is a function of a seed. Normalisation and
crops follow the NFNet authors' published input pipeline.
"""

import dataclasses

import numpy as np
import tensorflow as tf

MEAN_RGB = np.array([0.485, 0.456, 0.406], np.float32) * 255
STDDEV_RGB = np.array([0.229, 0.224, 0.225], np.float32) * 255
# Evaluation crops the share size / (size + padding) of the shorter side. The authors pad by 32 pixels, 1/7 of 224;
# at lower resolutions that would cut off the object, so there the share stays what it is at 224.
CROP_PADDING = 32
MAX_CROP_PADDING = 1 / 7


def normalize(images: tf.Tensor) -> tf.Tensor:
    """Maps RGB in [0, 255] (any dtype, [..., 3]) to the model's float32 input."""
    return (tf.cast(images, tf.float32) - MEAN_RGB) / STDDEV_RGB


def denormalize(images: np.ndarray) -> np.ndarray:
    """Undoes `normalize`, for looking at what the model sees: uint8 [..., 3]."""
    return np.clip(np.round(np.asarray(images) * STDDEV_RGB + MEAN_RGB), 0, 255).astype(np.uint8)


def evaluation_view(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """The view of an encoded image that evaluation, export and batch prediction share.

    Args:
      encoded: string [], a JPEG, PNG, GIF (its first frame) or BMP.
      size: pixels a side.

    Returns:
      The central square that holds size / (size + padding) of the shorter side, resized (bicubic), normalised:
      float32 [size, size, 3].
    """
    image = _decode(encoded)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    share = size / (size + min(CROP_PADDING, MAX_CROP_PADDING * size))
    side = tf.cast(tf.round(shorter * share), tf.int32)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return normalize(_resize(image[top : top + side, left : left + side], size))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training image is varied.

    Attributes:
      min_area, max_area: share of the image that the random crop keeps.
      min_ratio, max_ratio: width over height of the crop.
      flip: whether half the images are mirrored.
    """

    min_area: float = 0.08
    max_area: float = 1.0
    min_ratio: float = 3 / 4
    max_ratio: float = 4 / 3
    flip: bool = True

    def view(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """A varied view of an encoded image.

        Args:
          encoded: string [], a JPEG, PNG, GIF or BMP.
          seed: int32 [2]; one seed always gives the same view.
          size: pixels a side.

        Returns:
          float32 [size, size, 3], normalised.
        """
        crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
        image = self._random_crop(encoded, crop_seed)
        image = _resize(image, size)
        if self.flip:
            image = tf.image.stateless_random_flip_left_right(image, flip_seed)
        return normalize(image)

    def _random_crop(self, encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        is_jpeg = tf.io.is_jpeg(encoded)

        def crop_window(shape):
            begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
                shape,
                tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
                seed,
                min_object_covered=0.0,
                aspect_ratio_range=(self.min_ratio, self.max_ratio),
                area_range=(self.min_area, self.max_area),
                max_attempts=10,
                use_image_if_no_bounding_boxes=True,
            )
            return begin, size

        def decode_window():  # of a JPEG only the window is decoded
            begin, size = crop_window(tf.io.extract_jpeg_shape(encoded))
            window = tf.stack([begin[0], begin[1], size[0], size[1]])
            return tf.io.decode_and_crop_jpeg(encoded, window, channels=3)

        def decode_all():
            image = _decode(encoded)
            return tf.slice(image, *crop_window(tf.shape(image)))

        return tf.ensure_shape(tf.cond(is_jpeg, decode_window, decode_all), [None, None, 3])


def _decode(encoded: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Bicubic; float32 [size, size, 3] in [0, 255]."""
    resized = tf.image.resize(image, [size, size], tf.image.ResizeMethod.BICUBIC)
    return tf.clip_by_value(resized, 0.0, 255.0)
