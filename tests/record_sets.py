"""Small real record sets for tests, written with the project's own writer."""

import io
import os

import numpy as np
from PIL import Image

from pipeline.data import manifest, record, shard


def jpeg(rng: np.random.Generator, width: int = 40, height: int = 32, mean: float = 128) -> bytes:
    """A JPEG of smooth noise around the grey level `mean`."""
    pixels = np.clip(mean + rng.normal(0, 20, (height // 4, width // 4, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def make(
    directory,
    examples: int = 200,
    validation: int = 50,
    classes: int = 10,
    shards: int = 3,
    label_kind: str = record.SINGLE_LABEL,
) -> manifest.Manifest:
    """Writes a record set whose classes differ in brightness; returns its manifest.

    Of several labels, each example has its class with weight 1 and the next one with weight 0.5.
    """
    os.makedirs(directory, exist_ok=True)
    splits = {
        "train": _split(directory, "train", examples, classes, shards, label_kind),
        "validation": _split(directory, "validation", validation, classes, 1, label_kind),
    }
    names = tuple(f"class{i}" for i in range(classes))
    made = manifest.Manifest("demo", names, label_kind, splits)
    manifest.write(made, str(directory))
    return made


def _split(directory, split: str, examples: int, classes: int, shards: int, label_kind: str) -> manifest.Split:
    rng = np.random.default_rng(len(split))
    written, ids = [], []
    for number, part in enumerate(np.array_split(np.arange(examples), shards)):
        records = []
        for i in part.tolist():
            label, key = i % classes, f"class{i % classes}/{split}{i}.jpg"
            ids.append(record.record_id(key))
            image = jpeg(rng, 40 + 4 * (i % 3), 32, mean=255 * (label + 0.5) / classes)
            values = {"image": image, "key": key, "id": ids[-1]}
            if label_kind == record.SINGLE_LABEL:
                values["label"] = label
            else:
                values |= {"labels": [label, (label + 1) % classes], "label_weights": [1.0, 0.5]}
            records.append(record.serialize(values, label_kind))
        name = shard.shard_name("demo", split, number, shards)
        path = os.path.join(directory, name)
        index, sha256 = shard.write_shard(path, records)
        written.append(manifest.Shard(name, len(records), int(index[-1]), sha256))
    return manifest.Split(examples, examples, {}, manifest.checksum(ids), tuple(written))
