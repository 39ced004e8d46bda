"""Compiles the study's variants for a core of TPU v4 and keeps their speeds in pipeline/model/tpu_v4_speeds.json.

    python tools/tpu_table.py [--variants F0 F3] [--recompile]

Each variant takes minutes and is written when it is done; what the file has from the same compiler is not compiled
again without --recompile. Prints the table as Markdown, beside what the paper reports.
"""

import argparse
import functools
import json
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline.model import speeds  # noqa: E402 (the path comes first)
from pipeline.tpu import chips, compiler  # noqa: E402

# Gin file, and images a core with which the study's runs go on slices of a sensible size.
VARIANTS = {
    "F0": ("gin/f0_jft.gin", 64),
    "F1": ("gin/f1_jft.gin", 64),
    "F3": ("gin/f3_jft.gin", 32),
    "F3+": ("gin/f3plus_jft.gin", 32),
    "F7": ("gin/f7_jft.gin", 32),
    "F7+": ("gin/f7plus_jft.gin", 32),
}
TOPOLOGY, CONFIGURATION = "v4:2x2x1", chips.LEGACY
KEPT = (
    "replica_batch",
    "parameters",
    "estimated_cycles",
    "flops",
    "hbm_bytes_accessed",
    "argument_bytes",
    "temporary_bytes",
    "needed_bytes",
    "images_per_second_per_core",
    "mfu",
    "versions",
    "date",
)


def compile_variant(name: str) -> dict:
    """The row of a variant: `KEPT` of its estimate."""
    from pipeline import registry
    from pipeline.tpu import check, report

    gin_file, batch = VARIANTS[name]
    configured = functools.partial(registry.configured, [gin_file], [])
    topology = chips.topology(TOPOLOGY, CONFIGURATION)
    found, _ = check.check(configured, topology, replica_batch=batch, progress=report.Progress())
    if not found.fits:
        raise SystemExit(f"{name} does not fit with {batch} images a core: {found.refusal}")
    return {"gin_file": gin_file, **{field: found.as_dict()[field] for field in KEPT}}


def core_hours(row: dict, epochs: float) -> float:
    """Core-hours of so many epochs of the study's data."""
    return epochs * speeds.STUDY_IMAGES / row["images_per_second_per_core"] / 3600


def markdown(rows: dict[str, dict]) -> str:
    """The table as docs/performance.md shows it."""
    lines = [
        "| variant | images a core | M cycles | images/s a core | MFU | core-hours an epoch | reported | ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        reported = ours = ""
        if name in speeds.REPORTED_BUDGETS:
            epochs, hours = speeds.REPORTED_BUDGETS[name]
            reported, ours = f"{hours:,} for {epochs:g} epochs", f"{core_hours(row, epochs):,.0f}"
        lines.append(
            f"| {name} | {row['replica_batch']} | {row['estimated_cycles'] / 1e6:,.1f} | "
            f"{row['images_per_second_per_core']:,.1f} | {row['mfu']:.1%} | {core_hours(row, 1):,.0f} | {reported} | "
            f"{ours} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="which")
    parser.add_argument("--recompile", action="store_true", help="compile again what the file has")
    parser.add_argument("--output", default=speeds.TABLE, help="file to write")
    arguments = parser.parse_args()
    compiler.end_with_its_processes()
    rows = {}
    if os.path.exists(arguments.output):
        with open(arguments.output) as file:
            rows = json.load(file)["variants"]
    for name in arguments.variants:
        if arguments.recompile or rows.get(name, {}).get("versions") != compiler.versions():
            rows[name] = compile_variant(name)
            rows = {each: rows[each] for each in VARIANTS if each in rows}
            table = {"topology": TOPOLOGY, "chip_config": CONFIGURATION, "variants": rows}
            with open(arguments.output, "w") as file:
                json.dump(table, file, indent=1)
                file.write("\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
