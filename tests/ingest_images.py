"""Small image files for the ingest tests."""

import io
import os

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    """A smooth random RGB picture: what JPEG keeps well."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, image_format: str = "JPEG", **options) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write(path, data: bytes) -> str:
    """Writes a file and the folders above it; returns its path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return str(path)


def folder_tree(root, images: int = 40, classes: int = 4) -> str:
    """A tree of class folders with JPEG and PNG files, none of them broken."""
    for i in range(images):
        image_format, extension = ("PNG", "png") if i % 5 == 0 else ("JPEG", "jpg")
        write(f"{root}/class_{i % classes}/{i:03d}.{extension}", encode(picture(i), image_format))
    return str(root)


def broken_tree(root) -> str:
    """A tree with 40 good images in 4 classes, one that is broken in each of three ways, and a hidden file."""
    folder_tree(root)
    whole = encode(picture(0))
    write(f"{root}/class_0/cut.jpg", whole[: len(whole) // 2])
    write(f"{root}/class_1/empty.png", b"")
    write(f"{root}/class_2/words.jpg", b"these are words")
    write(f"{root}/class_3/.hidden", b"not listed")
    return str(root)


def contents(folder) -> dict[str, bytes]:
    """File name to bytes, of a flat folder."""
    data = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            data[name] = file.read()
    return data
