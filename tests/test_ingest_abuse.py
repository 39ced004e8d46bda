"""Hostile bytes and sudden ends: no crash, no hang, every image accounted for, the same bytes after a restart."""

import io
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from beam import images, launch
from beam.errors import BuildError
from beam.options import ImageSettings
from beam.sources.table import TableSource
from beam.sources.tar import TarSource
from pipeline.data import manifest
from tests import ingest_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
REASONS = {"empty", "undecodable", "truncated", "too_small", "too_many_pixels", "animated"}


def originals() -> list[bytes]:
    """Small files of every format and of the kinds that take other paths through a decoder."""
    picture = ingest_images.picture(1, 60, 44)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [ingest_images.picture(seed, 60, 44) for seed in (2, 3)]
    animated = {"save_all": True, "append_images": frames}
    encode = ingest_images.encode
    return [
        encode(picture),
        encode(picture, progressive=True),
        encode(picture, exif=exif),
        encode(picture.convert("CMYK")),
        encode(picture.convert("L")),
        encode(picture, "PNG"),
        encode(picture.convert("RGBA"), "PNG"),
        encode(picture.quantize(16), "PNG"),
        encode(Image.fromarray(np.arange(60 * 44, dtype=np.uint16).reshape(44, 60) * 20), "PNG"),
        encode(picture, "PNG", **animated),
        encode(picture, "GIF", **animated),
        encode(picture, "WEBP"),
        encode(picture, "WEBP", **animated),
        encode(picture, "BMP"),
        encode(picture, "TIFF"),
        encode(picture, "TIFF", compression="tiff_lzw"),
    ]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file with a few of its bytes changed, moved, repeated or gone; the head is hit more often."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(data), 64) if rng.random() < 0.4 else len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice((0, 0xFF, 0x7F, 0x80))
        elif kind == 2:
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)))
        elif kind == 3:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 4:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        else:
            del data[max(at, 8) :]
        if not data:
            break
    return bytes(data)


def survives(seeds) -> dict[str, int]:
    """Feeds mutated files to the checks; returns the outcomes counted."""
    files, outcomes = originals(), {}
    settings = ImageSettings(max_pixels=4_000_000)
    for seed in seeds:
        rng = random.Random(seed)
        data = mutated(files[seed % len(files)], rng)
        start = time.monotonic()
        try:
            found = images.normalise(data, settings)
            pixels = tf.io.decode_image(found.data, channels=3, expand_animations=False)
            assert pixels.shape == (found.height, found.width, 3)
            outcome = "written"
        except images.Refused as refused:
            assert refused.reason in REASONS and refused.detail
            outcome = refused.reason
        assert time.monotonic() - start < 20, f"seed {seed} took too long"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def test_mutated_images_quickly():
    outcomes = survives(range(480))
    assert outcomes["written"] > 20 and outcomes["truncated"] > 20 and outcomes["undecodable"] > 20


def test_a_jpeg_decodes_at_an_eighth_if_and_only_if_it_decodes_whole():
    """The job checks a JPEG at an eighth of its size; training decodes it whole."""
    jpegs = [data for data in originals() if data.startswith(b"\xff\xd8")]
    outcomes = []
    for seed in range(1200):
        data = mutated(jpegs[seed % len(jpegs)], random.Random(seed))
        whole, eighth = (_decodes(data, ratio) for ratio in (1, 8))
        assert whole == eighth, f"seed {seed}"
        outcomes.append(whole)
    assert 100 < sum(outcomes) < 1100


def _decodes(data: bytes, ratio: int) -> bool:
    try:
        tf.io.decode_jpeg(data, channels=3, ratio=ratio)
    except tf.errors.OpError:
        return False
    return True


@pytest.mark.slow
def test_mutated_images_by_the_thousand():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = survives(range(1000, 9000))
    assert sum(outcomes.values()) == 8000 and set(outcomes) <= REASONS | {"written"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "a mutated file took over 1 GiB"


@pytest.mark.slow
def test_mutated_tars_and_tables_by_the_thousand(tmp_path):
    members = [(f"{i}.{e}", b"1" * 50) for i in range(4) for e in ("jpg", "cls")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    texts = [b"path,label\n" + b"a.jpg,x\n" * 6, b'{"path": "a.jpg", "labels": ["x"], "label_weights": [1]}\n' * 6]
    rng = random.Random(0)
    for number in range(3000):
        path = str(tmp_path / f"{number}.tar")
        ingest_images.write(path, mutated(buffer.getvalue(), rng))
        for example in TarSource(path, (path,), root=f"{tmp_path}/").examples(path):
            assert example.refusal or (example.offset >= 0 and example.labels)
        os.remove(path)
        path = str(tmp_path / (f"{number}.csv" if number % 2 else f"{number}.jsonl"))
        ingest_images.write(path, mutated(texts[1 - number % 2], rng))
        try:
            for example in TableSource(path, (path,), root=f"{tmp_path}/").examples(path):
                assert example.refusal or example.labels
        except BuildError as error:
            assert path in str(error)
        os.remove(path)


def test_a_folder_of_mutated_images_is_accounted_for(tmp_path):
    files, rng = originals(), random.Random(5)
    for number in range(160):
        name = rng.choice((f"{number}.jpg", f"{number}.png", f"{number}", f"{number}.GIF.exe", f"\u202e{number}\n.jpg"))
        ingest_images.write(tmp_path / "source" / f"c{number % 2}" / name, mutated(files[number % len(files)], rng))
    for c in (0, 1):
        ingest_images.write(tmp_path / "source" / f"c{c}" / "good.jpg", files[0])
    output = tmp_path / "set"
    assert launch.main([f"--input={tmp_path}/source", f"--output_dir={output}", "--shards=2"]) == 0
    split = manifest.read(str(output)).split("train")
    assert split.listed == 162 == split.written + sum(split.rejected.values())
    with open(output / "rejected.jsonl") as file:
        assert len(file.readlines()) == sum(split.rejected.values())
    report = (output / "report.md").read_text()
    assert all(reason in report for reason in split.rejected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_it_ends_in_the_same_bytes(tmp_path, seed):
    """Six kills in each of four builds, at random moments of the work; then the build is let to finish."""
    source = tmp_path / "source"
    for i in range(240):
        data = ingest_images.encode(ingest_images.picture(i, 300, 200))
        ingest_images.write(source / f"c{i % 3}" / f"{i}.jpg", data)
    ingest_images.write(source / "c0" / "broken.jpg", b"words")
    flags = ["--shards=16", "--validation_fraction=0.2", "--resize=100"]
    if seed % 2:
        flags.append("--duplicates=keep_first")

    def command(output) -> list[str]:
        return [sys.executable, "beam/build_tfrecords.py", f"--input={source}", f"--output_dir={output}", *flags]

    subprocess.run(command(tmp_path / "undisturbed"), check=True, capture_output=True)
    expected = ingest_images.contents(tmp_path / "undisturbed")
    rng, output, killed = random.Random(seed), tmp_path / "set", 0
    while killed < 6:
        if len(_files(output)) > 0.8 * len(expected):  # little is left to be killed in
            shutil.rmtree(output)
        before, changes = _files(output), rng.randint(1, 15)
        process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(_files(output) ^ before) < changes:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        if (output / "manifest.json").exists():
            manifest.read(str(output))  # there, so whole
    subprocess.run(command(output), check=True, capture_output=True)
    assert ingest_images.contents(output) == expected


def _files(folder) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()
