"""Speed and memory of the ingest job against its limit and its peers, measured in one run.

    python benchmarks/ingest.py [--images=20000] [--many=50000] [--folder=DIR]

Makes ImageNet-like JPEGs (500 x 375, quality 90) and measures, each in a process of its own: decoding alone with
the decoder the job uses (the limit), the job itself, img2dataset's resizer on the same files (if it is installed),
and the TFDS Beam writer; the two that shrink images also on large photographs. Prints images per second, images per
core-second, peak memory, the time until the first image is checked, and each goal beside what was measured.
"""

import argparse
import concurrent.futures
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[0] = ROOT

_DIFFERENT = 400  # different images; the others are hard links to them
_CHUNK = 8  # images that a thread takes at once, as in the job
_SIDE = 256
_LARGE = (((2000, 1500), 800, 3.0), ((4000, 3000), 240, 5.0))  # (size, images, goal) of large photographs

Work = Callable[[], object]


def make_images(folder: str, count: int, size: tuple[int, int] = (500, 375), different: int = _DIFFERENT) -> None:
    """Photo-like JPEGs of `size` (width, height) in ten class folders: smooth shapes, texture and noise.

    `different` of them are different, the others are links to these.
    """
    from PIL import Image, ImageFilter

    for number in range(count):
        path = os.path.join(folder, f"class_{number % 10}", f"{number:06d}.jpg")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if number >= different:
            first = number % different
            os.link(os.path.join(folder, f"class_{first % 10}", f"{first:06d}.jpg"), path)
            continue
        rng = np.random.default_rng(number)
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, 3)
        texture = rng.normal(0, 25, (*size[::-1], 1)) * (np.asarray(shapes.convert("L"))[..., None] > 128)
        pixels = np.clip(np.asarray(shapes) + texture, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.6)).save(path, "JPEG", quality=90)


def _paths(folder: str) -> list[str]:
    return [entry.path for part in sorted(os.scandir(folder), key=lambda e: e.name) for entry in os.scandir(part)]


def _in_threads(function: Callable[[str], object], paths: list[str]) -> None:
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda chunk: [function(path) for path in chunk], chunks):
            pass


def decoding(folder: str, output: str) -> Work:
    """Reading and decoding, nothing else: the limit of what checks every image."""
    import tensorflow as tf

    def decode(path: str) -> None:
        with open(path, "rb") as file:
            tf.io.decode_jpeg(file.read(), channels=3)

    paths = _paths(folder)
    _in_threads(decode, paths[:16])
    return lambda: _in_threads(decode, paths)


def job(folder: str, output: str, *flags: str) -> Work:
    """The job, checking every image and passing it through."""
    from beam import launch

    def build(source: str, target: str) -> None:
        with open(os.devnull, "w") as null:
            sys.stdout, stdout = null, sys.stdout
            try:
                assert launch.main([f"--input={source}", f"--output_dir={target}", "--shards=16", *flags]) == 0
            finally:
                sys.stdout = stdout

    small = f"{output}-warm"
    make_images(f"{small}-images", 20)
    build(f"{small}-images", small)
    return lambda: build(folder, output)


def job_resizing(folder: str, output: str) -> Work:
    """The job, shrinking every image to a shorter side of 256 and encoding it again."""
    return job(folder, output, f"--resize={_SIDE}")


def job_deduplicating(folder: str, output: str) -> Work:
    """The job, removing exact copies, which reads and hashes every image first."""
    return job(folder, output, "--duplicates=report", "--duplicate_distance=-1")


def img2dataset(folder: str, output: str) -> Work:
    """img2dataset's resizer to the same size and quality; it writes nothing."""
    from img2dataset.resizer import Resizer

    resizer = Resizer(
        image_size=_SIDE,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        upscale_interpolation="lanczos",
        downscale_interpolation="area",
        encode_quality=95,
        encode_format="jpg",
    )

    def resize(path: str) -> None:
        with open(path, "rb") as file:
            assert resizer(io.BytesIO(file.read()))[0] is not None

    paths = _paths(folder)
    _in_threads(resize, paths[:16])
    return lambda: _in_threads(resize, paths)


def tfds_writer(folder: str, output: str) -> Work:
    """The TFDS Beam writer on the same files and runner; it checks nothing."""
    import apache_beam as beam
    import tensorflow_datasets as tfds
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from etils import epath

    class Bench(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = epath.Path(output)  # TFDS would look for metadata beside this script

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=10)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(_paths(folder))}

        def _generate_examples(self, paths):
            def example(path):
                label = int(os.path.basename(os.path.dirname(path))[-1])
                return path.replace("/", "_"), {"image": path, "label": label}

            return beam.Create(paths) | beam.Map(example)

    os.makedirs(output)
    builder = Bench(data_dir=output)
    config = tfds.download.DownloadConfig(beam_runner=FnApiRunner(), try_download_gcs=False)
    return lambda: builder.download_and_prepare(download_config=config)


METHODS = {
    function.__name__: function
    for function in (decoding, job, job_resizing, job_deduplicating, img2dataset, tfds_writer)
}


def run_one(method: str, folder: str, output: str) -> None:
    """Writes, as JSON, wall and processor seconds of a method and its peak memory in bytes to `output`.json.

    Not to standard output: img2dataset redirects that in its threads.
    """
    work = METHODS[method](folder, output)
    start, before = time.perf_counter(), time.process_time()
    work()
    result = {"seconds": time.perf_counter() - start, "core_seconds": time.process_time() - before}
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(f"{output}.json", "w") as file:
        json.dump(result, file)


def measure(method: str, folder: str, scratch: str, images: int) -> dict | None:
    """Runs a method in a process of its own; None if what it needs is not installed."""
    output = os.path.join(scratch, method)
    command = [
        sys.executable,
        os.path.abspath(__file__),
        f"--method={method}",
        f"--folder={folder}",
        f"--output={output}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for path in (output, f"{output}-warm", f"{output}-warm-images"):
        shutil.rmtree(path, ignore_errors=True)
    if done.returncode:
        print(f"{method}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    with open(f"{output}.json") as file:
        result = json.load(file)
    rates = {"rate": images / result["seconds"], "core_rate": images / result["core_seconds"]}
    print(
        f"{method:<18} {images:>7,} images {rates['rate']:>8,.0f} images/s {rates['core_rate']:>8,.0f} images/core-s "
        f"{result['peak'] / 2**20:>7,.0f} MiB",
        flush=True,
    )
    return {**result, **rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="images of each measurement")
    parser.add_argument("--many", type=int, default=50_000, help="images of the second memory measurement; 0: none")
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.method:
        run_one(flags.method, flags.folder, flags.output)
        return
    with tempfile.TemporaryDirectory(dir=flags.folder) as scratch:
        folder = os.path.join(scratch, "images")
        make_images(folder, flags.images)
        results = {method: measure(method, folder, scratch, flags.images) for method in METHODS}
        pairs: list[tuple[str, dict | None, dict | None, float]] = [
            ("checking and writing / decoding alone", results["job"], results["decoding"], 0.8),
            ("checking and writing / TFDS Beam writer", results["job"], results["tfds_writer"], 4.0),
            ("shrinking and writing / img2dataset's resizer", results["job_resizing"], results["img2dataset"], 1.0),
        ]
        for size, count, goal in _LARGE:
            photographs = os.path.join(scratch, "photographs")
            make_images(photographs, count, size, different=10)
            name = f"{size[0]} x {size[1]}"
            print(f"{name}:")
            ours, theirs = (measure(method, photographs, scratch, count) for method in ("job_resizing", "img2dataset"))
            pairs.append((f"{name}: shrinking and writing / img2dataset's resizer", ours, theirs, goal))
            shutil.rmtree(photographs)
        memory = []
        for count in (2000, flags.many) if flags.many else ():
            many = os.path.join(scratch, f"images-{count}")
            make_images(many, count)
            memory.append(measure("job", many, scratch, count))
            shutil.rmtree(many)
        start, tensorflow = start_up(folder, scratch)
    print()
    for text, ours, theirs, goal in pairs:
        if ours and theirs:
            wall, core = (ours[rate] / theirs[rate] for rate in ("rate", "core_rate"))
            print(f"{text:<60} {wall:5.2f} by the clock, {core:5.2f} by processor time (goal: at least {goal})")
    text = "start to the first image / TensorFlow's import"
    print(f"{text:<60} {start / tensorflow:5.2f}: {start:.1f} s / {tensorflow:.1f} s (goal: at most 1.2)")
    peaks = [measured["peak"] for measured in memory if measured]
    if len(peaks) == 2:
        text = f"peak memory, {flags.many:,} images / 2,000 images"
        print(f"{text:<60} {peaks[1] / peaks[0]:5.2f} (goal: flat)")


def start_up(folder: str, scratch: str, turns: int = 3) -> tuple[float, float]:
    """Seconds from the start of a process until the job checks its first image, and until TensorFlow is imported.

    Each is the shortest of several turns, taken alternately.
    """
    command = os.path.join(ROOT, "beam", "build_tfrecords.py")
    first_image = f"""
import os, runpy, sys, time
from concurrent import futures
def submit(pool, function, *arguments, submit=futures.ThreadPoolExecutor.submit):
    if function.__qualname__.startswith("outcomes."):  # of `beam.checks`: reads and checks images
        os.write(1, (str(time.time()) + chr(10)).encode())
        os._exit(0)
    return submit(pool, function, *arguments)
futures.ThreadPoolExecutor.submit = submit
sys.argv = ["{command}", "--input={folder}", "--output_dir={scratch}/started", "--shards=16"]
runpy.run_path("{command}", run_name="__main__")
"""
    imported = "import tensorflow, time; print(time.time())"

    def seconds(code: str) -> float:
        start = time.time()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[0]) - start

    pairs = [(seconds(first_image), seconds(imported)) for _ in range(turns)]
    return min(first for first, _ in pairs), min(second for _, second in pairs)


if __name__ == "__main__":
    main()
