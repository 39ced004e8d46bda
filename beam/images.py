"""One image: from the bytes a source holds to the bytes a record holds, or a refusal with a named reason.

A JPEG or PNG that is 8-bit RGB and upright passes through byte for byte. Everything else is decoded, turned upright,
converted to 8-bit RGB, shrunk if asked, and encoded again: as JPEG where it was JPEG or WebP, else as PNG. The decoder
that training uses has decoded every image that is returned.

A JPEG that is shrunk is decoded at the smallest scale of 1, 1/2, 1/4 and 1/8 that leaves twice the wanted size.
"""

import io
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from beam.duplicates import Pair
from beam.options import ImageSettings
from pipeline.data import rgb
from pipeline.errors import cause

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


class Refused(Exception):
    """The image cannot become a record: `reason` is one word to count by, `detail` a sentence.

    `pair`: of a duplicate, with the other image.
    """

    def __init__(self, reason: str, detail: str, pair: Pair | None = None):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.pair = pair


class Encoded(NamedTuple):
    """An image as a record holds it; `passed`: as the source's own bytes."""

    data: bytes
    width: int
    height: int
    passed: bool


def normalise(data: bytes, settings: ImageSettings) -> Encoded:
    """Checks an encoded image, and converts it to what a record holds.

    Raises:
      Refused: with reason empty, undecodable, truncated, too_small, too_many_pixels or animated.
    """
    if not data:
        raise Refused("empty", "0 bytes")
    image = _open(data, settings.max_pixels)
    width, height = image.size
    if min(width, height) < settings.min_side:
        raise Refused("too_small", f"{width} x {height} pixels; the shorter side at least {settings.min_side}")
    try:
        animated = settings.animated == "refuse" and rgb.is_animated(image)
        fits = rgb.fits(image, data)
    except Exception as error:  # it reads up to the second frame, in bytes that may be hostile
        raise _failure(data, f"{type(error).__name__}: {error}") from error
    if animated:
        raise Refused("animated", "more than one frame")
    shrinks = 0 < settings.resize < min(width, height)
    if fits and not shrinks:
        _decode(data, image.format == "PNG", (height, width))
        return Encoded(data, width, height, passed=True)
    if fits and image.format in rgb.JPEG_FORMATS:
        size = height, width
        pixels = _decode(data, False, size, _ratio(min(size), settings.resize)).numpy()
        return _encode(Image.fromarray(_shrunk(pixels, size, settings.resize)), True, settings.jpeg_quality)
    return _encode_again(image, data, settings)


def as_written(data: bytes) -> Encoded:
    """An image that an earlier build has checked and written."""
    return Encoded(data, *rgb.open_image(data, max_pixels=None).size, passed=False)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Reads the header only; the format comes from the content, never from a name."""
    try:
        return rgb.open_image(data, FORMATS, max_pixels)
    except rgb.TooManyPixels as error:
        raise Refused("too_many_pixels", str(error)) from error
    except Image.UnidentifiedImageError:
        raise _failure(data, f"of no supported format; begins with {data[:8]!r}") from None
    except Exception as error:  # Pillow's parsers raise many types on hostile bytes
        raise _failure(data, f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, is_png: bool, size: tuple[int, int], ratio: int = 8) -> tf.Tensor:
    """Decodes with TensorFlow, as training will, a JPEG at 1/`ratio` of its size; refuses what it refuses.

    At an eighth of its size all of the coded data are read, which is where decoding can fail, and the arithmetic on
    pixels is saved, which cannot.

    Returns:
      uint8 [ceil(height / ratio), ceil(width / ratio), 3]; a PNG at its size.
    """
    try:
        if is_png:
            expected, pixels = size, tf.io.decode_png(data, channels=3)
        else:
            expected = (-(-size[0] // ratio), -(-size[1] // ratio))
            pixels = tf.io.decode_jpeg(data, channels=3, ratio=ratio)
    except tf.errors.OpError as error:
        raise _failure(data, cause(error)) from error
    if tuple(pixels.shape) != (*expected, 3):
        raise Refused("undecodable", f"decodes to another size than its header says: {size[0]} x {size[1]}")
    return pixels


def _ratio(shorter: int, side: int) -> int:
    """The largest ratio of TensorFlow's JPEG decoder that leaves at least twice `side` of the shorter side."""
    return next(ratio for ratio in (8, 4, 2, 1) if ratio == 1 or shorter >= 2 * side * ratio)


def _failure(data: bytes, message: str) -> Refused:
    """The refusal that fits a decoder's message: an image whose end is missing is truncated, not just bad."""
    ends = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}
    cut = any(data.startswith(start) and end not in data[-64:] for start, end in ends.items())
    if cut or "truncated" in message:
        return Refused("truncated", f"ends after {len(data)} bytes, before its image does")
    return Refused("undecodable", message.splitlines()[0][:200] if message else "no decoder accepts it")


def _encode_again(image: Image.Image, data: bytes, settings: ImageSettings) -> Encoded:
    lossy = image.format in (*rgb.JPEG_FORMATS, "WEBP")
    size = image.height, image.width
    try:
        if rgb.orientation(image) in range(5, 9):  # it will be turned by 90 degrees
            size = size[::-1]
        if settings.resize:
            image.draft(None, (2 * settings.resize, 2 * settings.resize))  # a JPEG at a fraction of its size
        converted = rgb.convert(image)
        if 0 < settings.resize < min(size):
            converted = Image.fromarray(_shrunk(np.asarray(converted), size, settings.resize))
    except (MemoryError, Refused):
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        raise _failure(data, str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}") from error
    return _encode(converted, lossy, settings.jpeg_quality)


def _encode(pixels: Image.Image, lossy: bool, quality: int) -> Encoded:
    buffer = io.BytesIO()
    if lossy:
        pixels.save(buffer, "JPEG", quality=quality)
    else:
        pixels.save(buffer, "PNG")
    encoded = buffer.getvalue()
    _decode(encoded, not lossy, (pixels.height, pixels.width))
    return Encoded(encoded, pixels.width, pixels.height, passed=False)


def _shrunk(pixels: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Area averaging of an image that had `size` (height, width) to a shorter side of `side` pixels.

    `pixels`, uint8 [height, width, 3], may be smaller than `size` already. Averages over whole pixels are exact. Others
    are means of 2 x 2 of an image of twice the wanted size, interpolated linearly, which takes half the time of exact
    ones and differs from them by half a grey level on average, by 1.3 where an image is noise.
    """
    import cv2  # here: builds that keep sizes start without it

    cv2.setNumThreads(1)  # images are shrunk in threads of the job's own
    height, width = (max(1, round(n * side / min(size))) for n in size)
    whole = pixels.shape[0] % height == 0 and pixels.shape[1] % width == 0
    if not whole and min(pixels.shape[:2]) < 4 * side:
        pixels = cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
