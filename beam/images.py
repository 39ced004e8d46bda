"""One image: from the bytes a source holds to the bytes a record holds, or a refusal with a named reason.

What fits already (JPEG or PNG, 8-bit RGB, upright) passes through byte for byte. Everything else is decoded,
turned upright and into 8-bit RGB, shrunk if asked, and encoded again: as JPEG where it came from JPEG or
WebP, as PNG where it came from a lossless format. The decoder that training uses has decoded every image
that comes out.
"""

import io
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageCms, ImageOps

from beam.options import ImageSettings

Image.MAX_IMAGE_PIXELS = None  # we check the header's pixel count ourselves, before decoding

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_JPEG = ("JPEG", "MPO")  # Pillow calls a JPEG with further pictures behind the first MPO
_ORIENTATION = 0x0112


class Refused(Exception):
    """The image cannot become a record: `reason` is one word to count by, `detail` a sentence.

    `pair`: of a duplicate, the `duplicates.Pair`.
    """

    pair = None

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Encoded(NamedTuple):
    """An image as a record holds it. `passed`: these are the source's own bytes."""

    data: bytes
    width: int
    height: int
    passed: bool


def normalise(data: bytes, settings: ImageSettings) -> Encoded:
    """Checks an encoded image and makes it what a record holds.

    Raises:
      Refused: with reason empty, undecodable, truncated, too_small, too_many_pixels or animated.
    """
    if not data:
        raise Refused("empty", "0 bytes")
    image = _open(data)
    width, height = image.size
    if width * height > settings.max_pixels:
        raise Refused("too_many_pixels", f"{width} x {height} pixels; at most {settings.max_pixels}")
    if min(width, height) < settings.min_side:
        raise Refused("too_small", f"{width} x {height} pixels; the shorter side at least {settings.min_side}")
    if _is_animated(image) and settings.animated == "refuse":
        raise Refused("animated", f"{image.n_frames} frames")
    shrink = 0 < settings.resize < min(width, height)
    if not shrink and _fits(image, data):
        _decode(data, image.format, (height, width))
        return Encoded(data, width, height, passed=True)
    return _encode_again(image, data, settings)


def as_written(data: bytes) -> Encoded:
    """An image that an earlier build has checked and written."""
    return Encoded(data, *Image.open(io.BytesIO(data)).size, passed=False)


def _open(data: bytes) -> Image.Image:
    """Reads the header only; the format comes from the content, never from a name."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise _failure(data, f"of no format known here; begins with {data[:8]!r}") from None
    except Exception as error:  # Pillow's parsers raise many types on hostile bytes
        raise _failure(data, f"{type(error).__name__}: {error}") from error


def _is_animated(image: Image.Image) -> bool:
    return image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False)


def _fits(image: Image.Image, data: bytes) -> bool:
    """Whether the bytes are already 8-bit RGB, upright, in one frame."""
    if image.format in _JPEG:
        return image.mode == "RGB" and _orientation(image) in (0, 1)
    if image.format == "PNG":
        bit_depth, colour_type = data[24], data[25]  # of the IHDR chunk, always the first
        plain = (bit_depth, colour_type) == (8, 2) and "transparency" not in image.info
        return plain and not _is_animated(image) and _orientation(image) in (0, 1)
    return False


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # unreadable metadata says nothing about the pixels
        return 1


def _decode(data: bytes, image_format: str, size: tuple[int, int]) -> None:
    """Decodes with TensorFlow, as training will; refuses what it refuses."""
    decoder = tf.io.decode_png if image_format == "PNG" else tf.io.decode_jpeg
    try:
        shape = tuple(decoder(data, channels=3).shape)
    except tf.errors.OpError as error:
        raise _failure(data, error.message) from error
    if shape != (*size, 3):
        raise Refused("undecodable", f"decodes to {shape}; its header says {size[0]} x {size[1]}")


def _failure(data: bytes, message: str) -> Refused:
    """The refusal that fits a decoder's message: an image whose end is missing is truncated, not just bad."""
    ends = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}
    cut = any(data.startswith(start) and end not in data[-64:] for start, end in ends.items())
    if cut or "truncated" in message:
        return Refused("truncated", f"ends after {len(data)} bytes, before its image does")
    return Refused("undecodable", message.splitlines()[0][:200] if message else "no decoder takes it")


def _encode_again(image: Image.Image, data: bytes, settings: ImageSettings) -> Encoded:
    lossy = image.format in (*_JPEG, "WEBP")
    try:
        rgb = _shrunk(_rgb(_upright(image)), settings.resize)
    except (MemoryError, Refused):
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes
        raise _failure(data, f"{type(error).__name__}: {error}") from error
    buffer = io.BytesIO()
    if lossy:
        rgb.save(buffer, "JPEG", quality=settings.jpeg_quality)
    else:
        rgb.save(buffer, "PNG")
    encoded = buffer.getvalue()
    _decode(encoded, "JPEG" if lossy else "PNG", (rgb.height, rgb.width))
    return Encoded(encoded, rgb.width, rgb.height, passed=False)


def _upright(image: Image.Image) -> Image.Image:
    image.seek(0)
    image.load()
    return ImageOps.exif_transpose(image) if _orientation(image) in range(2, 9) else image


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB without metadata: 16 bits scaled to 8, inks through their profile, transparency onto white."""
    if image.mode == "F":
        raise Refused("undecodable", "pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 256).astype(np.uint8))
    elif image.mode == "CMYK" and image.info.get("icc_profile"):
        image = _through_profile(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    rgb = image.convert("RGB")
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())  # drops EXIF, profile and comments


def _through_profile(image: Image.Image) -> Image.Image:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image  # a broken profile: the plain conversion


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """Area averaging to a shorter side of `side` pixels; 0, or a smaller image: unchanged."""
    shorter = min(image.size)
    if not 0 < side < shorter:
        return image
    size = tuple(max(1, round(n * side / shorter)) for n in image.size)
    return image.resize(size, Image.Resampling.BOX)
