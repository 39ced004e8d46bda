"""Compiles the study's variants for TPU v4 and writes their speeds to pipeline/model/tpu_v4_speeds.json.

    python tools/tpu_table.py [--task finetuning] [--variants F0 F3] [--recompile]

Each variant is compiled for the slice whose cores share its global batch, and for one replica alone. That takes minutes
and is written when it is done; variants that the file has from the same compiler are skipped without --recompile.
Prints the table as Markdown, beside what the paper reports.
"""

import argparse
import functools
import json
import os
import sys
from typing import Any

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline import files  # noqa: E402 (the path comes first)
from pipeline.model import speeds, variants  # noqa: E402
from pipeline.study import planner  # noqa: E402
from pipeline.tpu import chips, compiler  # noqa: E402

# Section of the file to how the gin files end, and the images of a core. Those of fine-tuning, at 384 pixels, are
# guesses until they have been compiled.
TASKS = {
    "variants": ("jft", variants.STUDY_CORE_BATCHES),
    "finetuning": ("imagenet", {"F0": 32, "F1": 32, "F3": 16, "F3+": 8, "F7": 8, "F7+": 4}),
}
KEPT = (
    "topology",
    "chip_config",
    "replicas",
    "train_size",
    "replica_batch",
    "parameters",
    "estimated_cycles",
    "collective_cycles",
    "flops",
    "hbm_bytes_accessed",
    "state_bytes",
    "argument_bytes",
    "temporary_bytes",
    "needed_bytes",
    "images_per_second_per_core",
    "mfu",
    "versions",
    "date",
)


def compile_variant(name: str, task: str) -> dict:
    """The row of a variant: `KEPT` of its estimate, cycles of one replica alone, and its step's gradient passes."""
    from pipeline import registry
    from pipeline.tpu import check, estimate_table

    suffix, batches = TASKS[task]
    gin_file, batch = f"gin/{variants.identifier(name)}_{suffix}.gin", batches[name]
    configured = functools.partial(registry.configured, [gin_file], [])
    experiment = configured()
    topology = chips.topology(f"v4:{planner.TOPOLOGIES[experiment.data.batch // batch]}", chips.LEGACY)

    def fields(replicas: int) -> dict:
        estimate, _ = check.check(
            experiment, configured, topology, batch, replicas=replicas, progress=estimate_table.stage
        )
        if not estimate.fit.fits:
            raise SystemExit(f"{name} does not fit with {batch} images per core: {estimate.fit.refusal}")
        return estimate.as_dict()

    whole = fields(topology.replicas)
    return {
        "gin_file": gin_file,
        "gradient_passes": experiment.gradient_passes,
        "one_replica_cycles": fields(1)["estimated_cycles"],
        **{field: whole[field] for field in KEPT},
    }


def core_hours(row: dict, epochs: float) -> float:
    """Core-hours of so many epochs of the study's data."""
    return epochs * speeds.STUDY_IMAGES / row["images_per_second_per_core"] / 3600


def markdown(rows: dict[str, dict]) -> str:
    """The table as docs/performance.md shows it; cycles of the slice include the waiting for collectives."""
    lines = [
        "| variant | images per core | M cycles, one replica | slice | M cycles | of collectives | images/s per core "
        "| MFU | core-hours per epoch | paper | ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        waited, papers, ours = row["collective_cycles"], "", ""
        if name in speeds.STUDY_BUDGETS:
            epochs, hours = speeds.STUDY_BUDGETS[name]
            papers, ours = f"{hours:,} for {epochs:g} epochs", f"{core_hours(row, epochs):,.0f}"
            papers += " (inferred)" if "inferred" in speeds.STUDY_SPEEDS[name].source else ""
        lines.append(
            f"| {name} | {row['replica_batch']} | {row['one_replica_cycles'] / 1e6:,.1f} | {row['topology']} | "
            f"{(row['estimated_cycles'] + waited) / 1e6:,.1f} | {waited / 1e6:,.1f} | "
            f"{row['images_per_second_per_core']:,.1f} | {row['mfu']:.1%} | {core_hours(row, 1):,.0f} | {papers} | "
            f"{ours} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(variants.STUDY_CORE_BATCHES)
    parser.add_argument("--variants", nargs="+", choices=names, default=names, help="to compile")
    parser.add_argument(
        "--task", choices=list(TASKS), default="variants", help="pre-training (variants) or fine-tuning"
    )
    parser.add_argument("--recompile", action="store_true", help="compile again what the file has")
    parser.add_argument("--output", default=speeds.TABLE, help="file to write")
    arguments = parser.parse_args()
    compiler.end_with_its_processes()
    table: dict[str, Any] = {task: {} for task in TASKS}
    if os.path.exists(arguments.output):
        with open(arguments.output) as file:
            table |= json.load(file)
    rows = table[arguments.task]
    for name in arguments.variants:
        if arguments.recompile or rows.get(name, {}).get("versions") != compiler.versions():
            rows[name] = compile_variant(name, arguments.task)
            table[arguments.task] = {each: rows[each] for each in names if each in rows}
            files.write_atomically(arguments.output, json.dumps(table, indent=1) + "\n")
    print(markdown(table[arguments.task]))


if __name__ == "__main__":
    main()
