"""One image in, what a record holds out: compared with pixels computed without the module."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageCms

from beam import images
from beam.options import ImageSettings
from tests.ingest_images import encode, picture

SETTINGS = ImageSettings()


def pixels(data: bytes) -> np.ndarray:
    """What training's decoder makes of a record's image."""
    return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()


def refused(data: bytes, **settings) -> str:
    with pytest.raises(images.Refused) as error:
        images.normalise(data, ImageSettings(**settings))
    assert error.value.detail
    return error.value.reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_what_fits_passes_through(image_format):
    data = encode(picture(1), image_format)
    assert images.normalise(data, SETTINGS) == images.Encoded(data, 40, 32, True)


def test_every_orientation_is_applied_and_removed():
    upright = picture(2)
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_270],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }
    for orientation, steps in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(upright, "PNG", exif=exif)
        expected = upright
        for step in steps:
            expected = expected.transpose(step)
        found = images.normalise(data, SETTINGS)
        assert found.passed == (orientation == 1)
        np.testing.assert_array_equal(pixels(found.data), np.asarray(expected))
        assert Image.open(io.BytesIO(found.data)).getexif().get(0x0112, 1) == 1
        jpeg = images.normalise(encode(upright, exif=exif, quality=95), SETTINGS)
        assert jpeg.passed == (orientation == 1)
        assert (jpeg.width, jpeg.height) == expected.size
        assert np.abs(pixels(jpeg.data).astype(int) - np.asarray(expected)).mean() < 8


def test_grey_palette_and_bilevel_become_rgb():
    grey = picture(3).convert("L")
    for image in (grey, picture(3).quantize(16), grey.convert("1")):
        found = images.normalise(encode(image, "PNG"), SETTINGS)
        np.testing.assert_array_equal(pixels(found.data), np.asarray(image.convert("RGB")))
    found = images.normalise(encode(grey, "JPEG", quality=95), SETTINGS)
    assert Image.open(io.BytesIO(found.data)).mode == "RGB"
    assert np.abs(pixels(found.data).astype(int) - np.asarray(grey.convert("RGB"))).mean() < 2


def test_transparency_is_laid_on_white():
    rgba = picture(4).convert("RGBA")
    alpha = np.linspace(0, 255, 40 * 32).astype(np.uint8).reshape(32, 40)
    rgba.putalpha(Image.fromarray(alpha))
    found = pixels(images.normalise(encode(rgba, "PNG"), SETTINGS).data)
    cover = alpha[..., None] / 255.0
    expected = np.asarray(picture(4)) * cover + 255 * (1 - cover)
    assert np.abs(found - expected).max() <= 1
    clear = picture(4).quantize(8)
    clear.info["transparency"] = 0
    found = pixels(images.normalise(encode(clear, "PNG", transparency=0), SETTINGS).data)
    assert (found[np.asarray(clear) == 0] == 255).all()


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 40 * 32).astype(np.uint16).reshape(32, 40)
    found = pixels(images.normalise(encode(Image.fromarray(values), "PNG"), SETTINGS).data)
    np.testing.assert_array_equal(found[..., 0], values // 256)
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 40, 32, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
    result = images.normalise(data + png_chunk(b"IEND", b""), SETTINGS)
    assert not result.passed and Image.open(io.BytesIO(result.data)).mode == "RGB"
    np.testing.assert_array_equal(pixels(result.data)[..., 1], values // 256)


def test_cmyk_becomes_rgb():
    rgb = picture(5)
    found = images.normalise(encode(rgb.convert("CMYK"), "JPEG", quality=95), SETTINGS)
    assert not found.passed
    assert np.abs(pixels(found.data).astype(int) - np.asarray(rgb)).mean() < 5


@pytest.mark.parametrize("image_format", ["BMP", "TIFF", "GIF", "WEBP"])
def test_other_formats_are_told_by_content_and_encoded_again(image_format):
    image = picture(6).quantize(32).convert("RGB") if image_format == "GIF" else picture(6)
    options = {"lossless": True} if image_format == "WEBP" else {}
    found = images.normalise(encode(image, image_format, **options), SETTINGS)
    kind = "JPEG" if image_format == "WEBP" else "PNG"
    assert Image.open(io.BytesIO(found.data)).format == kind and not found.passed
    tolerance = 3 if image_format == "WEBP" else 0.2 if image_format == "GIF" else 0
    assert np.abs(pixels(found.data).astype(int) - np.asarray(image)).mean() <= tolerance


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_animation_by_policy(image_format):
    frames = [picture(seed) for seed in (7, 8)]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50)
    assert refused(data, animated="refuse") == "animated"
    first = pixels(images.normalise(data, SETTINGS).data).astype(int)
    assert np.abs(first - np.asarray(frames[0])).mean() < np.abs(first - np.asarray(frames[1])).mean() / 3


def test_resize_averages_areas_and_never_enlarges():
    values = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    found = images.normalise(encode(Image.fromarray(values), "PNG"), ImageSettings(resize=20))
    assert (found.width, found.height) == (30, 20)
    means = values.reshape(20, 3, 30, 3, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(pixels(found.data) - means).max() <= 1
    small = encode(picture(1), "PNG")
    assert images.normalise(small, ImageSettings(resize=32)).data == small
    tall = images.normalise(encode(picture(1, 50, 400)), ImageSettings(resize=25))
    assert (tall.width, tall.height) == (25, 200)


def area_averages(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Exact area averages: each output pixel weighs the input pixels by the part of them that it covers."""

    def weights(before: int, after: int) -> np.ndarray:
        edges = np.linspace(0, before, after + 1)
        cells = np.arange(before)
        covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        return np.clip(covered, 0, None) * after / before

    lines = np.tensordot(weights(values.shape[0], height), values, 1)
    return np.tensordot(weights(values.shape[1], width), lines, (1, 1)).transpose(1, 0, 2)


def as_encoded(values: np.ndarray, image_format: str) -> np.ndarray:
    """The pixels after they were encoded: as a JPEG, of the best quality, they lose colour."""
    options = {"quality": 100} if image_format == "JPEG" else {}
    return pixels(encode(Image.fromarray(np.rint(values).astype(np.uint8)), image_format, **options)).astype(int)


def textured(width: int, height: int) -> Image.Image:
    """A picture with the noise of a photo."""
    smooth = np.asarray(picture(11, width, height)).astype(float)
    return Image.fromarray(np.clip(smooth + np.random.default_rng(1).normal(0, 8, smooth.shape), 0, 255).astype("u1"))


@pytest.mark.parametrize("side", [130, 100, 64, 41, 23])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_shrinking_is_close_to_area_averaging(image_format, side):
    data = encode(textured(200, 150), image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    found = images.normalise(data, ImageSettings(resize=side, jpeg_quality=100))
    assert (found.width, found.height) == (round(200 * side / 150), side)
    expected = area_averages(pixels(data), found.height, found.width)
    assert np.abs(pixels(found.data) - as_encoded(expected, image_format)).mean() < 1.5  # grey levels, of white noise


@pytest.mark.parametrize("size", [(800, 600), (2000, 1500), (1031, 1030)])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(size, monkeypatch):
    ratios, decode = [], tf.io.decode_jpeg
    monkeypatch.setattr(
        tf.io, "decode_jpeg", lambda data, **options: ratios.append(options["ratio"]) or decode(data, **options)
    )
    data = encode(textured(*size), quality=90)
    found = images.normalise(data, ImageSettings(resize=64, jpeg_quality=100))
    shorter = min(size)
    assert ratios == [max(r for r in (1, 2, 4, 8) if shorter / r >= 128), 8], "and what was encoded is checked"
    assert (found.width, found.height) == (round(size[0] * 64 / shorter), round(size[1] * 64 / shorter))
    expected = area_averages(decode(data, channels=3).numpy(), found.height, found.width)
    assert np.abs(pixels(found.data) - as_encoded(expected, "JPEG")).mean() < 1.5


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_turned_jpeg_keeps_its_shape_when_it_shrinks(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = images.normalise(encode(picture(1, 400, 198), exif=exif), ImageSettings(resize=49))
    assert (found.width, found.height) == ((49, 99) if orientation == 6 else (99, 49))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_jpeg_is_refused_when_it_should_shrink(share):
    data = encode(textured(300, 200))
    assert refused(data[: int(len(data) * share)], resize=40) == "truncated"


def test_the_same_image_gives_the_same_bytes():
    data = encode(picture(9, 100, 80))
    assert len({images.normalise(data, ImageSettings(resize=50)).data for _ in range(3)}) == 1


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_cut_files_are_refused(image_format):
    data = encode(picture(10, 100, 80), image_format)
    for share in (0.1, 0.5, 0.9):
        reason = refused(data[: int(len(data) * share)])
        assert reason == "truncated" if image_format in ("JPEG", "PNG") else reason in ("truncated", "undecodable")


def test_what_is_not_an_image():
    assert refused(b"") == "empty"
    assert refused(b"<html>not found</html>") == "undecodable"
    assert refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "undecodable"


def test_limits():
    data = encode(picture(1, 64, 48))
    assert refused(data, min_side=49) == "too_small"
    assert images.normalise(data, ImageSettings(min_side=48, max_pixels=64 * 48))
    assert refused(data, max_pixels=64 * 48 - 1) == "too_many_pixels"


def test_bombs_are_refused_by_their_header():
    assert refused(png_header(50_000, 50_000) + png_chunk(b"IDAT", b"")) == "too_many_pixels"
    bmp = bytearray(encode(picture(1), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    assert refused(bytes(bmp)) == "too_many_pixels"
    gif = bytearray(encode(picture(1), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    assert refused(bytes(gif)) == "too_many_pixels"
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    assert refused(b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp) in ("too_many_pixels", "undecodable")


def test_a_header_that_lies_about_its_size_is_refused():
    image = encode(picture(1), "PNG")
    smaller = png_header(20, 20) + image[33:]
    assert refused(smaller) in ("undecodable", "truncated")


def test_nothing_but_pixels_is_left_of_what_is_encoded_again():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (
        encode(picture(1), exif=exif, icc_profile=profile, comment=b"a comment"),
        encode(picture(1), "PNG", exif=exif, icc_profile=profile),
    ):
        found = images.normalise(data, SETTINGS)
        left = Image.open(io.BytesIO(found.data))
        assert not found.passed and not dict(left.getexif())
        assert not {"exif", "icc_profile", "comment"} & set(left.info)
        assert b"secret" not in found.data
