"""The flags of the ingest job: Beam pipeline options, checked before any work."""

import argparse
import dataclasses
import math
import re
import sys
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from beam import flags
from beam.errors import BuildError
from beam.sources import registry
from beam.splits import TEST, TRAIN, VALIDATION
from pipeline.data import rgb


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What is done to each image: everything that decides the bytes of a record. The flags say what each means."""

    min_side: int = 8
    max_pixels: int = rgb.MAX_PIXELS
    max_bytes: int = 1 << 30
    animated: str = "first_frame"
    resize: int = 0
    jpeg_quality: int = 95


LIMITS = ("min_side", "max_pixels", "max_bytes", "animated")  # the settings that only decide what is refused


class BuildOptions(PipelineOptions):
    """Flags of `build_tfrecords.py`; every flag of Beam and of the chosen runner works beside them."""

    @classmethod
    def flags(cls) -> dict[str, Any]:
        """Name and default of every flag of the build."""
        parser = argparse.ArgumentParser(add_help=False)
        cls._add_argparse_args(parser)
        return vars(parser.parse_args([]))

    @classmethod
    def _add_argparse_args(cls, parser):
        parser.add_argument("--input", help=f"The images: {registry.expected()}.")
        for flag, text in registry.flags().items():
            parser.add_argument(f"--{flag}", default="", metavar="NAME", help=text)
        for split in (VALIDATION, TEST):
            parser.add_argument(
                f"--{split}_input", metavar="IMAGES", help=f"The images of the {split} split, written like --input."
            )
        parser.add_argument(
            "--splits",
            choices=("auto", "none"),
            default="auto",
            help="auto: the splits that --input has itself (folders train, val or validation, test; a column 'split'; "
            "names of tar shards; those of TFDS); none: all of --input is the train split.",
        )
        parser.add_argument("--output_dir", help="Where the record set goes.")
        parser.add_argument("--name", default="images", help="Name of the record set, as TFDS names its files.")
        parser.add_argument(
            "--classes", metavar="FILE", help="Class names in label order, one a line; by default those found, sorted."
        )
        parser.add_argument("--classes_of", metavar="SET", help="Class names of another record set, in its order.")
        parser.add_argument(
            "--shards", type=int, default=8, help="Shards of the train split; without one, of the largest split."
        )
        parser.add_argument(
            "--shard_mib",
            type=int,
            default=0,
            help="Choose the number of shards so that each has about this size, by the sizes of the source's images. "
            "With --resize they are smaller: give the number that --dry_run plans as --shards.",
        )
        parser.add_argument(
            "--replace",
            action="store_true",
            help="Build a set in place of another one in --output_dir, which stays until the new one is whole.",
        )
        parser.add_argument(
            "--retry_rejected",
            action="store_true",
            help="Read and check only the images that an earlier build refused.",
        )
        parser.add_argument(
            "--validation_fraction",
            type=float,
            default=0.0,
            metavar="PART",
            help="Part of the images to hold out, by hash of the key.",
        )
        parser.add_argument(
            "--validation_examples",
            type=int,
            default=0,
            metavar="NUMBER",
            help="Hold out exactly this many of the listed images instead.",
        )
        for flag, text in (
            ("min_side", "Refuse images with a shorter side below this."),
            ("max_pixels", "Refuse images with more pixels than this, undecoded."),
            ("max_bytes", "Refuse images of more bytes than this, unread."),
            ("resize", "Shrink to this shorter side, in pixels; 0 keeps every size."),
            ("jpeg_quality", "Quality of JPEGs that must be re-encoded."),
        ):
            parser.add_argument(f"--{flag}", type=int, default=getattr(ImageSettings, flag), help=text)
        parser.add_argument(
            "--animated",
            choices=("first_frame", "refuse"),
            default=ImageSettings.animated,
            help="What to do with animations.",
        )
        parser.add_argument(
            "--dry_run_images",
            type=int,
            default=0,
            metavar="NUMBER",
            help="With --dry_run, which reads a sample and prints what the build would cost: plan for this many images "
            "instead of those listed.",
        )
        for flag, unit in (
            ("core_hour_price", "an hour of one core"),
            ("shuffle_gib_price", "a GiB through Beam's shuffle"),
            ("request_price", "a million requests to an object store"),
        ):
            parser.add_argument(
                f"--{flag}", type=float, default=0.0, metavar="PRICE", help=f"With --dry_run: the price of {unit}."
            )
        parser.add_argument(
            "--duplicates",
            choices=("off", "report", "keep_first", "drop"),
            default="off",
            help="Search the set for duplicates, and report them, keep the first by key, or drop all.",
        )
        parser.add_argument(
            "--duplicate_distance",
            type=int,
            default=3,
            metavar="BITS",
            help="Images are near duplicates up to this many differing bits of 64; -1: only equal bytes count.",
        )
        parser.add_argument(
            "--remove_duplicates_of",
            action="append",
            metavar="PATH",
            help="Refuse images that are in this record set or file of hashes; repeat it for several.",
        )


def inputs(options: BuildOptions) -> dict[str, str]:
    """Split to what its flag names; `--input` counts as train."""
    given = {TRAIN: options.input, VALIDATION: options.validation_input, TEST: options.test_input}
    return {split: path for split, path in given.items() if path}


def image_settings(options: BuildOptions) -> ImageSettings:
    """The flags that decide the bytes of a record."""
    return ImageSettings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ImageSettings)})


def parse(argv: list[str]) -> PipelineOptions:
    """Parses the command line and checks it.

    Exits with status 2 and a message that names the flag and similar ones when a flag is unknown, as argparse
    does for a value of the wrong type.

    Raises:
      BuildError: a flag is missing, or its value is out of range.
    """
    argv = ["--dry_run=true" if argument == "--dry_run" else argument for argument in argv]  # Beam's takes a value
    options = flags.parse(
        argv,
        BuildOptions,
        "build_tfrecords.py",
        "--input=IMAGES --output_dir=DIR [flags of the build]",
        "Turns labelled images into TFRecord shards with a manifest.",
    )
    _check(options.view_as(BuildOptions))
    return options


def _check(options: BuildOptions) -> None:
    if not inputs(options):
        raise BuildError("--input is missing: give `--input=...`, --validation_input or --test_input; see --help.")
    if not options.output_dir:
        raise BuildError("--output_dir is missing: give `--output_dir=...`; see --help.")
    if options.classes and options.classes_of:
        raise BuildError("--classes and --classes_of are both given: give one of them.")
    if not re.fullmatch(r"[A-Za-z]\w*", options.name):
        raise BuildError(f"--name={options.name!r}: expected a letter, then letters, digits or '_'.")
    for flag, low, high in (
        ("shards", 1, 9_999_999),
        ("shard_mib", 0, 1 << 20),
        ("validation_examples", 0, sys.maxsize),
        ("dry_run_images", 0, sys.maxsize),
        ("min_side", 1, sys.maxsize),
        ("max_pixels", 1, (1 << 29) // 3),  # TensorFlow decodes no more than 2**29 bytes
        ("max_bytes", 1, 1 << 30),  # a record is a protocol buffer, which takes less than 2**31 bytes
        ("resize", 0, 1 << 15),
        ("jpeg_quality", 1, 100),
        ("duplicate_distance", -1, 16),
    ):
        if not low <= (value := getattr(options, flag)) <= high:
            raise BuildError(f"--{flag}={value}: expected {low} to {high}.")
    for flag in ("core_hour_price", "shuffle_gib_price", "request_price"):
        if not 0 <= (value := getattr(options, flag)) < math.inf:
            raise BuildError(f"--{flag}={value}: expected a price, 0 or more.")
    if not 0 <= options.validation_fraction < 1:
        raise BuildError(f"--validation_fraction={options.validation_fraction}: expected 0 up to less than 1.")
    if (options.validation_fraction or options.validation_examples) and not options.input:
        raise BuildError("There is no train split to hold validation images out from: give --input as well.")
    if options.validation_fraction and options.validation_examples:
        raise BuildError("--validation_fraction and --validation_examples are both given: give one of them.")
