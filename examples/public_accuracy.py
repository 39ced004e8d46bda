"""The public weights of NFNet-F0 to F6: fetched, imported, evaluated on ImageNet, compared with the published accuracy.

    python examples/public_accuracy.py --source=deepmind --variant=F0
    python examples/public_accuracy.py --source=timm --variant=F0     needs: pip install -r examples/requirements.txt

ImageNet is read as TFDS prepares it (`imagenet2012`, in TFDS_DATA_DIR), from images that you download yourself from
image-net.org, as TFDS says. Its validation split becomes a record set once, of the same bytes. Weights come from the
authors' bucket or timm's repositories; the checksum of what was fetched is compared and kept (`checksums.json`).

Exit code 0 where top-1 is within 0.1 points of what the authors published, 1 where it is not or a stage failed.
"""

import argparse
import base64
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from pipeline import command_line

command_line.set_up_tensorflow()

from pipeline import configure, files, registry
from pipeline.train import checkpoint, public_weights
from pipeline.train.run_config import RunContext

ADDRESS = "https://storage.googleapis.com/dm-nfnets/{variant}_haiku.npz"  # a pickle, whatever it is called
REPOSITORY, TIMM_FILE = "timm/dm_nfnet_{variant}.dm_in1k", "model.safetensors"
IMAGENET, EXAMPLES = "tfds:imagenet2012/validation", 50_000
TOLERANCE = 0.1  # percentage points


@dataclasses.dataclass(frozen=True)
class Published:
    """What is published of a variant.

    Attributes:
      top1: of the authors, in percent, in the README of deepmind-research/nfnets. Both sources have these weights.
      timm_top1: measured by timm (results-imagenet.csv), with Pillow's antialiased resize and the exact GELU.
      md5: of the authors' file as another public project states it; not compared by anybody of this one.
    """

    top1: float
    timm_top1: float
    md5: str


PUBLISHED = {
    "F0": Published(83.6, 83.486, "0a41039da1cb43adf47f1b7d86ddfe0f"),
    "F1": Published(84.7, 84.702, "c9126bbfaf855f9ddb7ff3b902558781"),
    "F2": Published(85.1, 85.194, "7a018d8d1498020e2f5a8719a1e7f53f"),
    "F3": Published(85.7, 85.686, "d8e1e78d26db659c486150dbaccbe78a"),
    "F4": Published(85.9, 85.836, "f5974a7e3388aa81b91a9f1403e759a4"),
    "F5": Published(86.0, 86.098, "8639e925de951030651ac775b9f915c3"),
    "F6": Published(86.5, 86.362, "b16cca40ac1ecec2bd5e3273866da0c1"),
}


class ComparisonError(RuntimeError):
    """A stage failed; the message says what to do."""


def main(argv: list[str] | None = None) -> int:
    """Does all stages; returns the exit code."""
    arguments = _parser().parse_args(argv)
    work = pathlib.Path(arguments.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    try:
        weights = pathlib.Path(arguments.file) if arguments.file else fetch(arguments, work)
        model_dir = import_weights(weights, arguments.source, arguments.variant, work)
        records = make_records(arguments.imagenet, work)
        metrics = evaluate(model_dir, records, arguments.variant, arguments.gin_param)
    except (ComparisonError, OSError, *registry.EXPECTED_ERRORS) as error:
        print(f"\n{type(error).__name__}: {configure.message(error)}", file=sys.stderr)
        return 1
    return compare(arguments, metrics, weights, records, work)


def fetch(arguments: argparse.Namespace, work: pathlib.Path) -> pathlib.Path:
    """The file of weights, fetched into `work` where it is not there yet; its checksums fit what is known of it."""
    variant = arguments.variant
    if arguments.source == "timm":
        path = pathlib.Path(_fetch_timm(variant, arguments.revision))
        check(path, f"timm-{variant}", work, arguments.sha256)
        return path
    path = work / f"{variant}_haiku.npz"
    expected = {} if arguments.sha256 else {"md5": PUBLISHED[variant].md5}
    if not path.exists():
        address = arguments.address.format(variant=variant)
        print(f"Fetching {address}")
        partial = path.with_suffix(".partial")
        with urllib.request.urlopen(address) as answer, open(partial, "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            sent = answer.headers.get_all("x-goog-hash") or []
        sums = dict(part.strip().split("=", 1) for line in sent for part in line.split(","))
        if "md5" in sums and (found := files.digest(partial, "md5")) != base64.b64decode(sums["md5"]).hex():
            raise ComparisonError(f"{address} did not arrive whole: its MD5 is {found}. Fetch it again.")
        check(partial, f"deepmind-{variant}", work, arguments.sha256, **expected)
        partial.rename(path)
    check(path, f"deepmind-{variant}", work, arguments.sha256, **expected)
    return path


def _fetch_timm(variant: str, revision: str) -> str:
    repository = REPOSITORY.format(variant=variant.lower())
    try:
        import huggingface_hub
    except ImportError:
        raise ComparisonError(
            "--source=timm takes the package huggingface_hub: pip install -r examples/requirements.txt. Or download "
            f"https://huggingface.co/{repository}/resolve/{revision}/{TIMM_FILE} and give it with --file."
        ) from None
    print(f"Fetching {TIMM_FILE} of {repository}, revision {revision}, from the Hugging Face hub")
    try:
        return huggingface_hub.hf_hub_download(repository, TIMM_FILE, revision=revision)
    except Exception as error:  # the hub's client raises many types
        raise ComparisonError(f"{repository} could not be fetched: {str(error).strip().splitlines()[0]}") from error


def check(path: pathlib.Path, name: str, work: pathlib.Path, sha256: str | None, md5: str = "") -> None:
    """Compares a file with its known checksums: those given, and what was recorded when it was first fetched.

    Raises:
      ComparisonError: one of them differs.
    """
    record = work / "checksums.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    found = {"sha256": files.digest(path), "md5": files.digest(path, "md5")}
    expected = {"sha256": sha256 or known.get(name, {}).get("sha256"), "md5": md5}
    for kind, value in expected.items():
        if value and value != found[kind]:
            raise ComparisonError(
                f"{path} has the {kind.upper()} {found[kind]}, expected {value}: it is another file than was published "
                f"or fetched before. If you trust it all the same, say so with --sha256={found['sha256']}."
            )
    if known.get(name) != found:
        print(f"{path.name}: SHA-256 {found['sha256']}, recorded in {record}")
        files.write_atomically(str(record), json.dumps({**known, name: found}, indent=1) + "\n")


def import_weights(path: pathlib.Path, source: str, variant: str, work: pathlib.Path) -> pathlib.Path:
    """The folder of a run with the weights of the file, imported where they are not yet."""
    model_dir = work / f"{source}-{variant}"
    saved = checkpoint.latest(str(model_dir / "checkpoints"))
    if saved is None or saved.facts.get("imported_sha256") != files.digest(path):
        model = public_weights.from_file(str(path), source, variant)
        print(f"Imported {path} to {public_weights.save(model, str(model_dir), str(path))}")
    return model_dir


def make_records(imagenet: str, work: pathlib.Path) -> pathlib.Path:
    """The record set of the images to evaluate on; made where it is not there yet."""
    folder = work / "records"
    settings = folder / "build.json"
    built_from = json.loads(settings.read_text())["input"] if settings.exists() else None
    if built_from not in (None, imagenet, os.path.abspath(imagenet)):
        raise ComparisonError(
            f"{folder} has images of {built_from}, not of {imagenet}: remove it, or give another --work_dir."
        )
    command = [sys.executable, "beam/build_tfrecords.py", f"--input={imagenet}", f"--output_dir={folder.resolve()}"]
    if not (folder / "manifest.json").exists() and subprocess.run([*command, "--name=imagenet"], cwd=ROOT).returncode:
        raise ComparisonError(
            f"No records were made of {imagenet}. TFDS prepares ImageNet from the archives of image-net.org, which "
            "need an account there: see tensorflow.org/datasets/catalog/imagenet2012."
        )
    return folder


def evaluate(model_dir: pathlib.Path, records: pathlib.Path, variant: str, params: list[str]) -> dict[str, float]:
    """Evaluates as the recipe of the variant on ImageNet says: its resolution and view, in float32."""
    # The set has one split; a batch of 50, as the authors', divides it.
    settings = [f'DATA_DIR="{records}"', "Loop.eval_batch=50"]
    registry.bindings([gin_file(variant)], [*settings, *params])
    return configure.get("evaluate")(RunContext(str(model_dir)), split="train")


def gin_file(variant: str) -> str:
    """The recipe of a variant on ImageNet."""
    return f"gin/{variant.lower()}_imagenet_scratch.gin"


def compare(
    arguments: argparse.Namespace,
    metrics: dict[str, float],
    weights: pathlib.Path,
    records: pathlib.Path,
    work: pathlib.Path,
) -> int:
    """Prints and writes the comparison; returns the exit code."""
    published = PUBLISHED[arguments.variant]
    examples = json.loads((records / "manifest.json").read_text())["splits"]["train"]["written"]
    top1 = 100 * metrics["top1"]
    result = {
        "source": arguments.source,
        "variant": arguments.variant,
        "sha256": files.digest(weights),
        "examples": examples,
        "top1": top1,
        "top5": 100 * metrics["top5"],
        "published_top1": published.top1,
        "timm_top1": published.timm_top1,
    }
    path = work / f"{arguments.source}-{arguments.variant}.json"
    files.write_atomically(str(path), json.dumps(result, indent=1) + "\n")
    is_near = abs(top1 - published.top1) <= TOLERANCE + 1e-9
    print(
        f"{arguments.variant} of {arguments.source}: top-1 {top1:.2f}% of {examples:,} images, published "
        f"{published.top1}%: {'within' if is_near else 'NOT within'} {TOLERANCE} points."
    )
    if examples != EXAMPLES:
        print(f"The published accuracy is of all {EXAMPLES:,} images of the validation set.")
    return 0 if is_near else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("deepmind", "timm"), required=True, help="whose file")
    parser.add_argument("--variant", choices=list(PUBLISHED), required=True)
    parser.add_argument("--file", help="a file of weights that is here already")
    parser.add_argument(
        "--imagenet", default=IMAGENET, help="images to evaluate on, as --input of beam/build_tfrecords.py"
    )
    parser.add_argument("--work_dir", default="runs/public", help="for weights, records and results")
    parser.add_argument("--sha256", help="of the file of weights, where you know it")
    parser.add_argument("--address", default=ADDRESS, help="where DeepMind's file is, with {variant} in it")
    parser.add_argument("--revision", default="main", help="of timm's repository")
    parser.add_argument(
        "--gin_param", action="append", default=[], help="over the variant's recipe, as of main.py: Loop.eval_batch=64"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
