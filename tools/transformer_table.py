"""Compiles steps of the Vision Transformers that the study is compared with: what would they take on our estimate?

    python tools/transformer_table.py [--json=FILE]

Layers of a transformer are alike. So each model is compiled twice, with `LAYERS` of its layers, for the slice whose
cores share the global batch and with the optimiser shared out; each further layer takes what the difference says.
Prints the table as Markdown, beside what the paper reports.
"""

import argparse
import ast
import dataclasses
import functools
import json
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline import files, registry  # noqa: E402 (the path comes first)
from pipeline.model import graph_cost  # noqa: E402
from pipeline.study import figures, planner  # noqa: E402
from pipeline.tpu import check, chips, compiler, estimate_table, program  # noqa: E402

RECIPE = "gin/study/vit/jft_pretrain.gin"
CORE_BATCH = 32  # images, as of NFNet-F7+
LAYERS = (2, 4)
GIN_FILES = {
    "SoViT-400m/14": "gin/model/sovit_400m14.gin",
    "ViT-g/14": "gin/model/vit_giant14.gin",
    "ViT-G/14": "gin/model/vit_gigantic14.gin",
}
EXTENSIVE = ("parameters", "estimated_cycles", "collective_cycles", "needed_bytes")  # grow by layer


@dataclasses.dataclass(frozen=True)
class Row:
    """A model on one core of the slice.

    Attributes:
      parameters: of the whole model.
      flops_per_image: of a forward pass, two a multiply-add.
      cycles: of a step by the compiler, waiting for collectives included.
      needed_bytes: of memory.
    """

    parameters: float
    flops_per_image: float
    cycles: float
    needed_bytes: float

    @property
    def images_per_second(self) -> float:
        """Per core."""
        return CORE_BATCH * chips.CHIPS["v4"].clock / self.cycles

    def core_hours(self, images: float) -> float:
        """TPU-v4 core-hours that `images` take."""
        return images / self.images_per_second / 3600


def measure(gin_file: str) -> Row:
    """Compiles a model with each of `LAYERS` and follows the line to all of its layers."""
    settings = ast.literal_eval(registry.bindings([RECIPE, gin_file], [])["garden.settings"])
    depth = settings["transformer"]["num_layers"]
    fields = [_compiled(gin_file, settings, layers) for layers in LAYERS]
    of_layer = {name: (fields[1][name] - fields[0][name]) / (LAYERS[1] - LAYERS[0]) for name in fields[0]}
    whole = {name: value + (depth - LAYERS[0]) * of_layer[name] for name, value in fields[0].items()}
    cycles = whole["estimated_cycles"] + whole["collective_cycles"]
    return Row(whole["parameters"], whole["flops_per_image"], cycles, whole["needed_bytes"])


def _compiled(gin_file: str, settings: dict, layers: int) -> dict[str, float]:
    import tensorflow as tf

    shallow = settings | {"transformer": settings["transformer"] | {"num_layers": layers}}
    configured = functools.partial(registry.configured, [RECIPE, gin_file], [f"garden.settings={shallow!r}"])
    experiment = configured()
    topology = chips.topology(f"v4:{planner.TOPOLOGIES[experiment.data.batch // CORE_BATCH]}", chips.LEGACY)
    estimate, _ = check.check(experiment, configured, topology, CORE_BATCH, progress=estimate_table.stage)
    with tf.Graph().as_default():  # where variables take no memory
        model = experiment.create_model(program.dataset_info(experiment).classes)
        flops = 2 * graph_cost.multiply_adds(model, experiment.data.train_size)
    found = estimate.as_dict()
    return {name: found[name] for name in EXTENSIVE} | {"flops_per_image": flops}


def table(rows: dict[str, Row]) -> str:
    """As Markdown."""
    reported = {name: hours for name, hours, _ in figures.REPORTED}
    lines = [
        "| model | million parameters | GFLOPs per image | million cycles | MFU | GiB | images/s per core "
        "| core-hours per billion images | reported core-hours | images that those buy, billions |",
        "|" + "---|" * 10,
    ]
    for name, row in rows.items():
        mfu = 3 * row.flops_per_image * row.images_per_second / (chips.CHIPS["v4"].peak_flops / chips.CHIPS["v4"].cores)
        billion = row.core_hours(1e9)
        lines.append(
            f"| {name} | {row.parameters / 1e6:,.0f} | {row.flops_per_image / 1e9:,.0f} | {row.cycles / 1e6:,.1f} "
            f"| {mfu:.1%} | {row.needed_bytes / 2**30:.1f} | {row.images_per_second:,.1f} | {billion:,.0f} "
            f"| {reported[name]:,.0f} | {reported[name] / billion:,.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="file for the rows; models that it has are not compiled again")
    args = parser.parse_args()
    compiler.end_with_its_processes()
    rows = {}
    if args.json and os.path.exists(args.json):
        with open(args.json) as file:
            rows = {name: Row(**fields) for name, fields in json.load(file).items()}
    for name, gin_file in GIN_FILES.items():
        if name not in rows:
            rows[name] = measure(gin_file)
            if args.json:
                named = {name: dataclasses.asdict(row) for name, row in rows.items()}
                files.write_atomically(args.json, json.dumps(named, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
