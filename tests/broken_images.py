"""Image files of every kind that a server may be sent: broken, hostile, or merely unusual."""

import functools
import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SIDE = 12_000  # pixels: more than 100 megapixels in a square


class Case(NamedTuple):
    """A file, and whether it can be used."""

    name: str
    data: bytes
    valid: bool


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth random RGB picture."""
    pixels = np.random.default_rng(7).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def transparent() -> Image.Image:
    """The picture with alpha from 0 to 255."""
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.linspace(0, 255, 60 * 40).astype(np.uint8).reshape(40, 60)))
    return image


def png(header: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes], interlace: int = 0) -> bytes:
    """A PNG of (width, height, bit depth, colour type), filtered rows, and chunks before them."""
    width, height, depth, colour = header
    first = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    chunks = (first, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def exif(
    value: int = 6, order: str = "<", kind: int = 3, directory: int = 8, entries: int = 1, magic: bytes | None = None
) -> bytes:
    """EXIF metadata with an orientation, or something close to it."""
    magic = magic if magic is not None else (b"II*\0" if order == "<" else b"MM\0*")
    # A value of fewer than four bytes is at the start of its field.
    field = struct.pack(order + "H2x" if kind == 3 else order + "I", value)
    tag = struct.pack(order + "HHI", 0x0112, kind, 1) + field
    return magic + struct.pack(order + "I", directory) + struct.pack(order + "H", entries) + tag + bytes(4)


def with_exif(data: bytes, metadata: bytes, before: bytes = b"") -> bytes:
    """A JPEG with EXIF metadata as its first segment, or after others."""
    payload = b"Exif\0\0" + metadata
    return data[:2] + before + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def bmp(
    bits: int, compression: int = 0, header: int = 40, masks: bytes = b"", width: int = 12, height: int = 8
) -> bytes:
    """A BMP of grey pixels, whatever its header says."""
    row = (width * bits // 8 + 3) // 4 * 4
    palette = bytes(4 << bits) if bits <= 8 else b""
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    info = (info + masks).ljust(header, b"\0") + (masks if header == 40 else b"") + palette
    pixels = bytes([128]) * (row * height)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


def at(data: bytes, place: int, new: bytes) -> bytes:
    """The data with `new` in the place of what is there."""
    return data[:place] + new + data[place + len(new) :]


def flipped(data: bytes, *shares: float) -> bytes:
    """The data with a byte inverted at each of these shares of its length."""
    changed = bytearray(data)
    for share in shares:
        changed[int(share * len(data))] ^= 0xFF
    return bytes(changed)


def gif_of(*frames: tuple[int, int, int, int], screen: tuple[int, int] = (12, 8), block: int = 255) -> bytes:
    """A GIF of grey frames of (left, top, width, height), its data in blocks of `block` bytes."""
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\x80\x80\x80\xff\0\0"
    for left, top, width, height in frames:
        # Codes of 3 bits: clear (4) before each colour (0), so that they never grow; then end (5).
        colours = np.tile(np.array([0, 0, 1, 0, 0, 0], np.uint8), min(width * height, 100_000))
        packed = np.packbits(np.append(colours, np.array([1, 0, 1], np.uint8)), bitorder="little").tobytes()
        data += b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02"
        for start in range(0, len(packed), block):
            part = packed[start : start + block]
            data += bytes([len(part)]) + part
        data += b"\0"
    return data + b";"


def _animated(kind: str, **options: Any) -> bytes:
    return encode(picture(), kind, save_all=True, append_images=[picture().rotate(90)], duration=50, **options)


def _jpegs() -> list[Case]:
    data = encode(picture(), "JPEG", quality=95)
    sof = data.index(b"\xff\xc0") + 5  # height and width
    scan = data.index(b"\xff\xda")
    segment = b"\xff\xe2\xff\xff" + bytes(0xFFFF - 2)
    return [
        Case("JPEG", data, True),
        Case("JPEG: progressive", encode(picture(), "JPEG", progressive=True), True),
        Case("JPEG: grey", encode(picture().convert("L"), "JPEG"), True),
        Case("JPEG: CMYK", encode(picture().convert("CMYK"), "JPEG"), True),
        Case("JPEG: RGB without conversion", encode(picture(), "JPEG", keep_rgb=True), True),
        Case("JPEG: restart markers", encode(picture(), "JPEG", restart_marker_blocks=2), True),
        Case("JPEG: 1 x 1", encode(picture(1, 1), "JPEG"), True),
        Case("JPEG: text behind its end", data + b"text" * 100, True),
        Case("JPEG: bytes of its scan inverted", flipped(data, 0.8, 0.9), True),  # as much as JPEG can tell
        Case("JPEG: first two bytes", data[:2], False),
        Case("JPEG: cut in a segment", data[:30], False),
        Case("JPEG: cut before its scan", data[:scan], False),
        Case("JPEG: cut in half", data[: len(data) // 2], False),
        Case("JPEG: cut at nine tenths", data[: len(data) * 9 // 10], False),
        Case("JPEG: 60,000 x 60,000 by its header", at(data, sof, struct.pack(">HH", 60_000, 60_000)), False),
        Case("JPEG: 12,000 x 12,000 by its header", at(data, sof, struct.pack(">HH", SIDE, SIDE)), False),
        Case("JPEG: 0 x 0 by its header", at(data, sof, struct.pack(">HH", 0, 0)), False),
        Case("JPEG: no tables", data[:2] + data[sof - 5 :], False),
        Case("JPEG: a segment without end", data[:2] + b"\xff\xe1\xff\xff" + data[2:], False),
        Case("JPEG: 40 long segments before EXIF", with_exif(data, exif(), before=segment * 40), True),
        Case("JPEG: only segments", data[:2] + b"\xff\xe0\0\2" * 100_000, False),
    ]


def _orientations() -> list[Case]:
    data = encode(picture(), "JPEG", quality=95)
    odd = {
        "0": exif(0),
        "9": exif(9),
        "65535": exif(65_535),
        "in 32 bits": exif(6, kind=4),
        "of an unknown type": exif(6, kind=99),
        "in the other byte order": exif(6, ">", magic=b"II*\0"),
        "without byte order": exif(6, magic=b"XX*\0"),
        "behind the end": exif(6, directory=1 << 20),
        "at 4 GB": exif(6, directory=(1 << 32) - 1),
        "in a directory that contains itself": exif(6, directory=0),
        "among 65,535 entries": exif(6, entries=65_535),
        "in metadata that are cut off": exif(6)[:15],
        "in 6 bytes": exif(6)[:6],
        "in no metadata": b"",
    }
    cases = [Case(f"EXIF: orientation {name}", with_exif(data, metadata), True) for name, metadata in odd.items()]
    shortest = data[:2] + b"\xff\xe1\0\2Exif\0\0" + data[2:]  # bytes between segments, which decoders skip
    return [*cases, Case("EXIF: in a segment that is too short", shortest, True)]


def _pngs() -> list[Case]:
    data = encode(picture(), "PNG")
    grey = b"".join(b"\0" + bytes(range(60)) for _ in range(40))
    bomb = zlib.compressobj(1)
    row = bytes(SIDE + 1)
    zeros = b"".join([*(bomb.compress(row * 100) for _ in range(SIDE // 100)), bomb.flush()])
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in ((b"IHDR", header), (b"IDAT", zeros), (b"IEND", b""))
    )
    modes = {mode: picture().convert(mode) for mode in ("1", "L", "LA", "P", "RGBA")}
    return [
        Case("PNG", data, True),
        *(Case(f"PNG: {mode}", encode(image, "PNG"), True) for mode, image in modes.items()),
        Case("PNG: 2 bits of grey", png((60, 40, 2, 0), (b"\0" + bytes(range(15))) * 40), True),
        Case(
            "PNG: 16 bits of grey",
            encode(Image.fromarray(np.arange(2400).astype(np.uint16).reshape(40, 60)), "PNG"),
            True,
        ),
        Case("PNG: 16 bits of RGB", png((60, 40, 16, 2), (b"\0" + bytes(range(180)) * 2) * 40), True),
        Case("PNG: 1 x 1", encode(picture(1, 1), "PNG"), True),
        Case("PNG: 1 x 200", encode(picture(1, 200), "PNG"), True),
        Case("PNG: 3,000 x 1", encode(picture(3000, 1), "PNG"), True),
        Case("PNG: animated", _animated("PNG"), True),
        Case("PNG: empty tRNS", png((60, 40, 8, 0), grey, (b"tRNS", b"")), True),
        Case("PNG: tRNS of the wrong length", png((60, 40, 8, 0), grey, (b"tRNS", bytes(9))), True),
        Case("PNG: eXIf that is text", png((60, 40, 8, 0), grey, (b"eXIf", b"text")), True),
        Case("PNG: 2,000 text chunks", png((60, 40, 8, 0), grey, *[(b"tEXt", b"a\0b")] * 2000), True),
        Case("PNG: palette without its colours", png((60, 40, 8, 3), grey), False),
        Case("PNG: signature alone", data[:8], False),
        Case("PNG: cut in its header", data[:20], False),
        Case("PNG: cut in half", data[: len(data) // 2], False),
        Case("PNG: without its end", data[:-12], False),
        Case("PNG: bytes inverted", flipped(data, 0.3, 0.6), False),
        Case("PNG: header's sum wrong", flipped(data, 30 / len(data)), False),
        Case("PNG: rows missing", png((60, 40, 8, 0), grey[:600]), False),
        Case("PNG: 60,000 x 60,000 by its header", png((60_000, 60_000, 8, 2), b""), False),
        Case("PNG: 2^31 wide", png((1 << 31, 1, 8, 2), b""), False),
        Case("PNG: 0 x 0", png((0, 0, 8, 2), b""), False),
        Case("PNG: a bomb of 144 megapixels", b"\x89PNG\r\n\x1a\n" + chunks, False),
        Case("PNG: a chunk of 4 GB", at(png((60, 40, 8, 0), grey, (b"tEXt", b"a\0b")), 33, b"\xff" * 4), False),
    ]


def _gifs() -> list[Case]:
    data = encode(picture(), "GIF")
    clear = picture().quantize(8)
    return [
        Case("GIF", data, True),
        Case("GIF: animated", _animated("GIF"), True),
        Case("GIF: transparent", encode(clear, "GIF", transparency=0), True),
        Case(
            "GIF: transparent behind its colours", at(encode(clear, "GIF", transparency=0), 13 + 24 + 6, b"\xff"), True
        ),
        Case("GIF: blocks of one byte", gif_of((0, 0, 90, 60), screen=(90, 60), block=1), True),
        Case("GIF: 45,000 blocks of one byte", gif_of((0, 0, 300, 200), screen=(300, 200), block=1), False),
        Case("GIF: blocks of two sizes", gif_of((0, 0, 60, 40), screen=(60, 40), block=254), True),
        Case("GIF: frame larger than its canvas", gif_of((0, 0, 60, 40), screen=(1, 1)), True),
        Case("GIF: second frame of 60,000 x 60,000", gif_of((0, 0, 12, 8), (0, 0, 60_000, 60_000)), True),
        Case("GIF: second frame cut", gif_of((0, 0, 12, 8), (0, 0, 12, 8))[:-20], True),
        Case("GIF: frame smaller than its canvas", gif_of((0, 0, 6, 4)), False),
        Case("GIF: frame beside its canvas", gif_of((6, 4, 12, 8)), False),
        Case("GIF: 60,000 x 60,000", gif_of((0, 0, 60_000, 60_000), screen=(60_000, 60_000)), False),
        Case("GIF: 60,000 x 60,000 on a small canvas", gif_of((0, 0, 60_000, 60_000)), False),
        Case("GIF: a bomb of 144 megapixels", encode(Image.new("L", (SIDE, SIDE)), "GIF", optimize=False), False),
        Case("GIF: 0 x 0", gif_of((0, 0, 0, 0), screen=(0, 0)), False),
        Case("GIF: no frame", gif_of(), False),
        Case("GIF: signature alone", data[:6], False),
        Case("GIF: cut in its palette", data[:100], False),
        Case("GIF: cut in half", data[: len(data) // 2], False),
        Case("GIF: only extensions", gif_of()[:-1] + b"!\xfe\x01a\0" * 100_000, False),
        Case("GIF: an extension of many blocks", gif_of()[:-1] + b"!\xfe" + b"\x01a" * 100_000, False),
        Case(
            "GIF: frame without palette",
            b"GIF89a" + struct.pack("<HHBBB", 12, 8, 0, 0, 0) + gif_of((0, 0, 12, 8))[19:],
            False,
        ),
    ]


def _bmps() -> list[Case]:
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    alpha = masks + struct.pack("<I", 0xFF000000)
    data = encode(picture(), "BMP")
    return [
        Case("BMP", data, True),
        Case("BMP: 32 bits", bmp(32), True),
        Case("BMP: 32 bits with masks", bmp(32, 3, masks=masks), True),
        Case("BMP: 32 bits with alpha", bmp(32, 3, header=108, masks=alpha), True),
        Case("BMP: from top to bottom", at(data, 22, struct.pack("<i", -40)), True),
        Case("BMP: 1 bit", encode(picture().convert("1"), "BMP"), False),
        Case("BMP: 4 bits", bmp(4), False),
        Case("BMP: 8 bits of grey", encode(picture().convert("L"), "BMP"), False),
        Case("BMP: 8 bits of a palette", encode(picture().quantize(9), "BMP"), False),
        Case("BMP: 8 bits, run lengths", bmp(8, 1), False),
        Case("BMP: 16 bits", bmp(16), False),
        Case("BMP: 32 bits with other masks", bmp(32, 3, masks=masks[::-1]), False),
        Case("BMP: header of OS/2", bmp(24, header=12), False),
        Case("BMP: 60,000 x 60,000", at(data, 18, struct.pack("<ii", 60_000, 60_000)), False),
        Case("BMP: 2^31 high", at(data, 22, struct.pack("<i", -(1 << 31))), False),
        Case("BMP: 0 wide", at(data, 18, bytes(4)), False),
        Case("BMP: cut", data[:-100], False),
        Case("BMP: signature alone", b"BM", False),
    ]


def _webps() -> list[Case]:
    lossy, lossless = encode(picture(), "WEBP"), encode(picture(), "WEBP", lossless=True)
    extended = encode(transparent(), "WEBP")
    largest = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    side = (59_999).to_bytes(3, "little")
    return [
        Case("WebP", lossy, True),
        Case("WebP: lossless", lossless, True),
        Case("WebP: alpha", extended, True),
        Case("WebP: lossless with alpha", encode(transparent(), "WEBP", lossless=True), True),
        Case("WebP: EXIF that is text", encode(picture(), "WEBP", exif=b"text"), True),
        Case("WebP: animated", _animated("WEBP", lossless=True), False),
        Case("WebP: animated with alpha", _animated("WEBP", lossless=True, allow_mixed=True), False),
        Case("WebP: 16,384 x 16,384 by its lossless header", at(lossless, 21, largest), False),
        Case("WebP: 16,383 x 16,383 by its lossy header", at(lossy, 26, b"\xff\x3f\xff\x3f"), False),
        Case("WebP: 60,000 x 60,000 by its canvas", at(extended, 24, side + side), False),
        Case("WebP: another size than its canvas", at(extended, 24, bytes(6)), False),
        Case("WebP: animated by its header alone", at(extended, 20, bytes([extended[20] | 2])), False),
        Case("WebP: of an unknown kind", at(lossy, 12, b"VP9 "), False),
        Case("WebP: cut in half", lossy[: len(lossy) // 2], False),
        Case("WebP: signature alone", lossy[:12], False),
        Case("RIFF: sound", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(40), False),
    ]


def _others() -> list[Case]:
    return [
        Case("nothing", b"", False),
        Case("one byte", b"\xff", False),
        Case("zeros", bytes(5000), False),
        Case("noise", np.random.default_rng(1).bytes(5000), False),
        Case("text", b"this is no image\n" * 40, False),
        Case("HTML", b"<!DOCTYPE html><html><body>not found</body></html>", False),
        Case("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', False),
        Case("PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n", False),
        Case("TIFF", encode(picture(), "TIFF"), False),
        Case("ICO", encode(picture(), "ICO"), False),
        Case("PPM", encode(picture(), "PPM"), False),
        Case("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), False),
        Case("JPEG XL", b"\xff\x0a" + bytes(100), False),
        Case("AVIF", b"\0\0\0\x1cftypavif" + bytes(100), False),
        Case("gzip", b"\x1f\x8b\x08" + bytes(100), False),
        Case("a PNG in base64", b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", False),
    ]


@functools.cache
def cases() -> tuple[Case, ...]:
    """All of them; each name is there once."""
    return (*_jpegs(), *_orientations(), *_pngs(), *_gifs(), *_bmps(), *_webps(), *_others())
