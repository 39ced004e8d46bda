"""What the parts of the recipe are worth: held-out loss with and without each of them, on the demo images.

    python examples/ablation.py [--output_dir=runs/ablation] [--seeds=2]

AGC is tried in pre-training, from random weights, at a low and at a high learning rate; the other parts in fine-tuning
the pre-trained network on ten other classes with 30 images each, few enough to be learned by heart. Every run is a
command that a user could type; it is printed before it runs, and finished runs are skipped. The table is written to
`ablation.md` and `ablation.json` in the output folder.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from examples.quickstart import command, run
from pipeline import files

IMAGES = "runs/quickstart/images"
PRETRAINING_RECORDS = "runs/quickstart/records/pretrain"
SMALL = {"TRAIN_SIZE": 48, "EVAL_SIZE": 48}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run: its name, and what it sets over its experiment's gin file."""

    name: str
    settings: dict[str, object]


def pretraining(name: str, **settings: object) -> Trial:
    """Pre-training on 44 classes, 4 epochs."""
    return Trial(name, {"EPOCHS": 4, **settings})


def finetuning(name: str, **settings: object) -> Trial:
    """Fine-tuning for 40 epochs, without what else its gin file has against learning by heart."""
    plain = {"Experiment.label_smoothing": 0.0, "nfnet.stochastic_depth_rate": 0.0, "EMA_DECAY": None}
    return Trial(name, {"EPOCHS": 40, "LEARNING_RATE": RATE, **plain, **settings})


HIGH, LOW = 0.4, 0.1  # learning rates of pre-training
RATE = 0.2  # and of fine-tuning
NO_CLIPPING = {"sgd.clipping": None}
CONSTANT = {"cosine.final": RATE}
PRETRAINING = (
    pretraining("agc", LEARNING_RATE=HIGH),
    pretraining("no-agc", LEARNING_RATE=HIGH, **NO_CLIPPING),
    pretraining("agc-low", LEARNING_RATE=LOW),
    pretraining("no-agc-low", LEARNING_RATE=LOW, **NO_CLIPPING),
)
FINETUNING = (
    finetuning("plain"),
    finetuning("sam", **{"Experiment.sam": "@SAM()"}),
    finetuning("ema", EMA_DECAY=0.99),
    finetuning("constant", **CONSTANT),
    finetuning("constant-ema", **CONSTANT, EMA_DECAY=0.99),
    finetuning("mixing", **{"Augmentation.mixing": "@Mixing()"}),
    finetuning("repeats", **{"Augmentation.repeats": 4, "EPOCHS": 10}),
)
# The part, the run without it and the run with it.
COMPARISONS = (
    (f"AGC, learning rate {HIGH}", "no-agc", "agc"),
    (f"AGC, learning rate {LOW}", "no-agc-low", "agc-low"),
    ("SAM (each step twice as long)", "plain", "sam"),
    ("EMA, learning rate to 0 by a cosine", "plain", "ema"),
    ("EMA, constant learning rate", "constant", "constant-ema"),
    ("mixup and cutmix", "plain", "mixing"),
    ("repeated augmentation, 4 views, as many images in all", "plain", "repeats"),
)


def main(argv: list[str]) -> int:
    """Makes the runs that are missing and the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=2, help="fine-tuning runs of each kind (default 2)")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}; expected 1 or more.")
    records = arguments.output_dir / "records"
    make_records(records)
    results = run_all(arguments.output_dir, records, arguments.seeds)
    table = rows(results)
    text = markdown(table)
    (arguments.output_dir / "ablation.md").write_text(text)
    (arguments.output_dir / "ablation.json").write_text(json.dumps({"table": table, "runs": results}, indent=1) + "\n")
    print(f"\n{text}\nWritten to {arguments.output_dir}/ablation.md and ablation.json.")
    return 0


def make_records(few: pathlib.Path) -> None:
    """The quickstart's images, its records for pre-training, and records of few images for fine-tuning, if missing."""
    if not (ROOT / IMAGES).exists():
        run("Demo images", "examples/make_demo_images.py", f"--output_dir={IMAGES}")
    for name, folder, held_out in (
        ("pretrain", PRETRAINING_RECORDS, "--validation_examples=500"),
        ("finetune", few, "--validation_examples=1700"),
    ):
        if not (ROOT / folder / "manifest.json").exists():
            flags = f"--input={IMAGES}/{name}", f"--output_dir={folder}", f"--name={name}", held_out
            run(f"Records in {folder}", "beam/build_tfrecords.py", *flags)


def run_all(out: pathlib.Path, records: pathlib.Path, seeds: int) -> dict[str, list[dict | None]]:
    """Runs what is not finished; returns the summaries of each trial, one a seed, None where it diverged."""
    plan = [("quickstart_pretrain", trial, 0, {"DATA_DIR": PRETRAINING_RECORDS}) for trial in PRETRAINING]
    task = {"DATA_DIR": str(records), "INITIAL_CHECKPOINT": str(out / "agc-0")}
    plan += [("quickstart_finetune", trial, seed, task) for seed in range(seeds) for trial in FINETUNING]
    results: dict[str, list[dict | None]] = {}
    began = time.monotonic()
    for number, (gin_file, trial, seed, common) in enumerate(plan, 1):
        print(f"[{number}/{len(plan)}, {time.monotonic() - began:.0f} s] {trial.name}, seed {seed}")
        settings = {**SMALL, **common, "SEED": seed, **trial.settings}
        results.setdefault(trial.name, []).append(train(gin_file, settings, out / f"{trial.name}-{seed}"))
    return results


def train(gin_file: str, settings: dict[str, object], model_dir: pathlib.Path) -> dict | None:
    """The summary of a run, made now if it is not finished; None if its loss is not finite.

    Raises:
      SystemExit: the run failed in another way.
    """
    words = command(gin_file, settings, model_dir)
    finished = ROOT / model_dir / "finished.json"  # of a run with these settings, diverged or not
    if finished.exists() and (found := json.loads(finished.read_text()))["command"] == words:
        return found["summary"]
    print("  python", shlex.join(words), flush=True)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    diverged = done.returncode == 1 and "DivergedError" in done.stdout
    if done.returncode and not diverged:
        sys.exit(f"{done.stdout}\nThe run above failed with exit code {done.returncode}.")
    summary = None if diverged else json.loads((ROOT / model_dir / "run.json").read_text())
    content = {"command": words, "summary": summary, "said": done.stdout.splitlines()[-1]}
    files.write_atomically(str(finished), json.dumps(content))
    print(f"  {done.stdout.splitlines()[-1]}")
    return summary


def rows(results: dict[str, list[dict | None]]) -> list[dict]:
    """Each comparison with the means over seeds: `part`, `without`, `with`; `loss_change` as mean and spread."""
    table = []
    for part, without, with_it in COMPARISONS:
        pairs = list(zip(results[without], results[with_it], strict=True))
        row = {"part": part, "without": means(results[without]), "with": means(results[with_it])}
        changes = [b["validation_loss"] - a["validation_loss"] for a, b in pairs if a and b]
        if len(changes) == len(pairs):
            row["loss_change"] = {"mean": statistics.mean(changes), "lowest": min(changes), "highest": max(changes)}
        table.append(row)
    return table


def means(summaries: list[dict | None]) -> dict[str, float] | None:
    """Mean held-out `loss` and `top1` over seeds; None if one of them diverged."""
    converged = [summary for summary in summaries if summary]
    if len(converged) < len(summaries):
        return None
    return {name: statistics.mean(s[f"validation_{name}"] for s in converged) for name in ("loss", "top1")}


def markdown(table: list[dict]) -> str:
    """The table as Markdown."""
    lines = ["| part | without: loss | top-1 | with: loss | top-1 | change of the loss |", "|---|---|---|---|---|---|"]
    for row in table:
        cells = [row["part"]]
        for side in ("without", "with"):
            scores = row[side]
            cells += [f"{scores['loss']:.3f}", f"{scores['top1']:.1%}"] if scores else ["diverged", ""]
        if change := row.get("loss_change"):
            several = change["lowest"] != change["highest"]
            spread = f" ({change['lowest']:+.3f} to {change['highest']:+.3f})" if several else ""
            cells.append(f"{change['mean']:+.3f}{spread}")
        else:
            cells.append("")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
