"""RandAugment on 8-bit images, stateless, with operations that are cheap on a CPU.

RandAugment (arXiv 1909.13719) applies a few random operations, all at one magnitude. Operations and their
strengths are those of the NFNet authors' published pipeline, which are the Model Garden's too; docs/augmentation.md
lists where those two differ and which one this file follows. Two things make it fast: an operation takes few
passes over the pixels, and only the one that was drawn runs (`tf.switch_case` in a tf.data map is lowered so
that every branch costs time, drawn or not).

Images are uint8 [height, width, 3] of static shape; what an operation moves in from outside is grey (128).
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

GREY = 128


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel linearly to 0..255; a channel of one value stays."""
    rows = _rows(image)
    low = tf.cast(_over_channels(tf.reduce_min, rows), tf.float32)
    high = tf.cast(_over_channels(tf.reduce_max, rows), tf.float32)
    flat = high <= low
    scale = tf.where(flat, 1.0, 255.0 / tf.where(flat, 1.0, high - low))
    shift = tf.where(flat, 0.0, -low * scale)
    return _image(_from_float(tf.cast(rows, tf.float32) * _as_row(scale, image) + _as_row(shift, image)))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Makes each channel's histogram as flat as a table of 256 values can, by Pillow's integer rule."""
    position = tf.cast(_rows(image), tf.int32) + _as_row(tf.constant([0, 256, 512]), image)
    counts = tf.math.bincount(position, minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    highest = 255 - tf.argmax(tf.reverse(counts > 0, [1]), 1, tf.int32)
    step = (tf.reduce_sum(counts, 1) - tf.gather(counts, highest, batch_dims=1)) // 255
    step = step[:, None]
    table = (tf.cumsum(counts, 1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step == 0, tf.range(256)[None], tf.minimum(table, 255))
    # gather_nd, since gather takes a third longer for single values.
    return _image(tf.gather_nd(tf.reshape(tf.cast(table, tf.uint8), [-1]), position[..., None]))


def invert(image: tf.Tensor) -> tf.Tensor:
    """255 minus each value."""
    return 255 - image


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest `bits` bits (0 to 8) of each value."""
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2 ** (8 - bits), tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the values from `threshold` (0 to 255) up."""
    bright = tf.cast(image >= tf.constant(threshold, tf.uint8), tf.uint8)
    return tf.bitwise.bitwise_xor(image, bright * 255)


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds to the values below 128, up to 255."""
    dark = tf.cast(image < 128, tf.float32)
    return _from_float(tf.cast(image, tf.float32) + dark * addition)


def color(image: tf.Tensor, factor: float) -> tf.Tensor:
    """From greyscale (0) over the image itself (1) to more saturated colours (above 1)."""
    luma = tf.constant([[0.299], [0.587], [0.114]]) @ tf.ones([1, 3])
    mixture = factor * tf.eye(3) + (1 - factor) * luma
    mixed = tf.reshape(tf.cast(image, tf.float32), [-1, 3]) @ mixture
    return tf.reshape(_from_float(mixed), image.shape)


def contrast(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Moves each channel away from its mean (factor above 1) or towards it (below 1)."""
    values = tf.cast(_rows(image), tf.float32)
    mean = _over_channels(tf.reduce_mean, values)
    return _image(_from_float(values * factor + _as_row(mean * (1 - factor), image)))


def brightness(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Multiplies each value by `factor`."""
    return _from_float(tf.cast(image, tf.float32) * factor)


def sharpness(image: tf.Tensor, factor: float) -> tf.Tensor:
    """From smoothed (0) over the image itself (1) to sharpened (above 1); the outermost pixels stay.

    Smoothing is Pillow's: the mean of 3 x 3 pixels, the middle one counted five times, rounded down.
    """
    values = tf.cast(image, tf.float32)
    rows = values[:-2] + values[1:-1] + values[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    middle = values[1:-1, 1:-1]
    smooth = tf.floor((box + 4 * middle) / 13)
    inner = _from_float(smooth + factor * (middle - smooth))
    middle_rows = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], 1)
    return tf.concat([image[:1], middle_rows, image[-1:]], 0)


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turns the image anticlockwise about its centre, to the nearest pixel."""
    height, width = image.shape[:2]
    cos, sin = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    shift_x = middle_x - (cos * middle_x - sin * middle_y)
    shift_y = middle_y - (sin * middle_x + cos * middle_y)
    return _affine(image, [cos, -sin, shift_x], [sin, cos, shift_y])


def shear_x(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Row y shows what was at x + level * y."""
    return _affine(image, [1.0, level, 0.0], [0.0, 1.0, 0.0])


def shear_y(image: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """Column x shows what was at y + level * x."""
    return _affine(image, [1.0, 0.0, 0.0], [level, 1.0, 0.0])


def translate_x(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Moves the image left by `pixels`, or right where negative."""
    return _translate(image, pixels, 1)


def translate_y(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Moves the image up by `pixels`, or down where negative."""
    return _translate(image, pixels, 0)


def cutout(image: tf.Tensor, half_side: int, centre_y: tf.Tensor, centre_x: tf.Tensor) -> tf.Tensor:
    """Greys the square of 2 * half_side pixels around (centre_y, centre_x), int32, clipped to the image."""
    height, width = image.shape[:2]
    top, bottom = tf.maximum(centre_y - half_side, 0), tf.minimum(centre_y + half_side, height)
    left, right = tf.maximum(centre_x - half_side, 0), tf.minimum(centre_x + half_side, width)
    hole = tf.fill([bottom - top, right - left, 3], tf.constant(GREY, tf.uint8))
    rows = image[top:bottom]
    return tf.concat([image[:top], tf.concat([rows[:, :left], hole, rows[:, right:]], 1), image[bottom:]], 0)


# Arithmetic with one number for each channel is several times as fast on an image laid out as
# [height, width * 3], with the three numbers repeated along the row, as it is on [height, width, 3].


def _rows(image: tf.Tensor) -> tf.Tensor:
    return tf.reshape(image, [image.shape[0], -1])


def _image(rows: tf.Tensor) -> tf.Tensor:
    return tf.reshape(rows, [rows.shape[0], -1, 3])


def _as_row(channels: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    return tf.tile(channels, [image.shape[1]])


def _over_channels(reduce: Callable, rows: tf.Tensor) -> tf.Tensor:
    return reduce(tf.reshape(reduce(rows, 0), [-1, 3]), 0)


def _from_float(values: tf.Tensor) -> tf.Tensor:
    """Clips to 0..255 and rounds down, as Pillow does."""
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def _translate(image: tf.Tensor, pixels: tf.Tensor, axis: int) -> tf.Tensor:
    side = image.shape[axis]
    pixels = tf.clip_by_value(tf.cast(tf.round(pixels), tf.int32), -side, side)
    before, after = tf.maximum(-pixels, 0), tf.maximum(pixels, 0)

    def grey(count):
        shape = [count, image.shape[1], 3] if axis == 0 else [image.shape[0], count, 3]
        return tf.fill(shape, tf.constant(GREY, tf.uint8))

    kept = image[after : side - before] if axis == 0 else image[:, after : side - before]
    return tf.concat([grey(before), kept, grey(after)], axis)


def _affine(image: tf.Tensor, to_x: list[float | tf.Tensor], to_y: list[float | tf.Tensor]) -> tf.Tensor:
    """Pixel (x, y) shows the pixel nearest to (a x + b y + c, d x + e y + f); to_x is [a, b, c], to_y [d, e, f]."""
    height, width = image.shape[:2]
    x, y = tf.range(width, dtype=tf.float32)[None], tf.range(height, dtype=tf.float32)[:, None]
    source_x = tf.floor((to_x[0] * x + (to_x[2] + 0.5)) + to_x[1] * y)
    source_y = tf.floor((to_y[0] * x + (to_y[2] + 0.5)) + to_y[1] * y)
    # One grey pixel all around takes every place outside; so no second pass has to fill them.
    framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], constant_values=GREY)
    source_x = tf.clip_by_value(source_x, -1.0, float(width)) + 1
    source_y = tf.clip_by_value(source_y, -1.0, float(height)) + 1
    position = tf.cast(source_y * (width + 2) + source_x, tf.int32)
    return tf.gather(tf.reshape(framed, [-1, 3]), position)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies `layers` operations, each drawn independently from `operations`, all at one magnitude.

    Attributes:
      layers: operations an image goes through.
      magnitude: strength; 10 is the scale's nominal end, the NFNet authors go up to 15.
      operations: names out of `OPERATIONS`, each as likely as the others.
      translate_pixels, cutout_pixels: how far translation goes, and half the side of the cut-out square, at
        magnitude 10. Like the authors' these are pixels and not shares of the image: choose smaller ones for
        images much smaller than 200 pixels.
    """

    layers: int
    magnitude: float
    operations: tuple[str, ...] = ()
    translate_pixels: float = 100.0
    cutout_pixels: float = 40.0

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(
                f"RandAugment.layers is {self.layers}; expected 1 or more (leave RandAugment out for none)."
            )
        if not 0 <= self.magnitude <= 30:
            raise ValueError(f"RandAugment.magnitude is {self.magnitude}; expected 0 to 30.")
        if unknown := set(self.operations) - set(OPERATIONS):
            raise ValueError(f"RandAugment.operations: unknown {sorted(unknown)}; expected some of {list(OPERATIONS)}.")

    def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augments one image; call it inside a `tf.function` or a tf.data map.

        Args:
          image: uint8 [height, width, 3], of static shape.
          seed: int32 [2]; one seed always gives the same result.

        Returns:
          uint8 [height, width, 3].
        """
        names = self.operations or tuple(OPERATIONS)
        random = tf.random.stateless_uniform([self.layers, 4], seed)
        drawn = tf.cast(random[:, 0] * len(names), tf.int32)
        arguments = (tf.TensorSpec(image.shape, tf.uint8), tf.TensorSpec([3], tf.float32))
        branches = [tf.function(self.operation(name)).get_concrete_function(*arguments) for name in names]
        for branch in branches:
            branch.add_to_graph()
        for layer in range(self.layers):
            # The raw operation, which runs one branch and no part of the others.
            [image] = tf.raw_ops.StatelessCase(
                branch_index=drawn[layer],
                input=[image, random[layer, 1:]],
                Tout=[tf.uint8],
                branches=branches,
                output_shapes=[image.shape],
            )
        return image

    def operation(self, name: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """The operation at this magnitude: maps an image and three uniform numbers in [0, 1) to an image."""
        return lambda image, random: OPERATIONS[name](self, image, random)

    @property
    def level(self) -> float:
        """The magnitude as a share of 10."""
        return self.magnitude / 10

    @property
    def enhancement(self) -> float:
        """The factor of color, contrast, brightness and sharpness."""
        return 0.1 + 1.8 * self.level


def _either_way(strength: float, random: tf.Tensor) -> tf.Tensor:
    """The strength with a random sign."""
    return tf.where(random[0] < 0.5, strength, -strength)


def _random_cutout(policy: RandAugment, image: tf.Tensor, random: tf.Tensor) -> tf.Tensor:
    centre_y, centre_x = (tf.cast(random[i] * image.shape[i], tf.int32) for i in (0, 1))
    return cutout(image, int(policy.level * policy.cutout_pixels), centre_y, centre_x)


# Name -> how a policy applies the operation to an image, given three uniform random numbers.
OPERATIONS: dict[str, Callable[[RandAugment, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "AutoContrast": lambda policy, image, random: autocontrast(image),
    "Equalize": lambda policy, image, random: equalize(image),
    "Invert": lambda policy, image, random: invert(image),
    "Rotate": lambda policy, image, random: rotate(image, _either_way(30 * policy.level, random)),
    "Posterize": lambda policy, image, random: posterize(image, min(int(4 * policy.level), 8)),
    # Past 255 the threshold starts again at 0, in the authors' code and in the Garden's: it is cast to 8 bits.
    "Solarize": lambda policy, image, random: solarize(image, int(256 * policy.level) % 256),
    "Color": lambda policy, image, random: color(image, policy.enhancement),
    "Contrast": lambda policy, image, random: contrast(image, policy.enhancement),
    "Brightness": lambda policy, image, random: brightness(image, policy.enhancement),
    "Sharpness": lambda policy, image, random: sharpness(image, policy.enhancement),
    "ShearX": lambda policy, image, random: shear_x(image, _either_way(0.3 * policy.level, random)),
    "ShearY": lambda policy, image, random: shear_y(image, _either_way(0.3 * policy.level, random)),
    "TranslateX": lambda policy, image, random: translate_x(
        image, _either_way(policy.translate_pixels * policy.level, random)
    ),
    "TranslateY": lambda policy, image, random: translate_y(
        image, _either_way(policy.translate_pixels * policy.level, random)
    ),
    "Cutout": _random_cutout,
    "SolarizeAdd": lambda policy, image, random: solarize_add(image, int(110 * policy.level)),
}
