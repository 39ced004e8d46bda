"""A scaling study: plan a run, count what a study costs, run it, fit its laws, plot its figures and write its page.

python pipeline/scaling_study.py plan --core_hours=5000 [--images=N] [--study=DIR]
python pipeline/scaling_study.py cost --gin_file=gin/study/jft.gin
python pipeline/scaling_study.py estimate --gin_file=gin/study/demo.gin [--topology=v4:2x2x1]
python pipeline/scaling_study.py run --gin_file=gin/study/demo.gin [--print_commands]
python pipeline/scaling_study.py fit --study=DIR [--unit=core_hours|flops|seconds]
python pipeline/scaling_study.py plot --study=DIR [--unit=...] [--output_dir=DIR/figures]
python pipeline/scaling_study.py hparams --study=DIR
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse

from pipeline import command_line, configure
from pipeline.model import speeds
from pipeline.study import StudyError, comparison, planner, run_files, search, sweep
from pipeline.study.analysis import StudyAnalysis, analyse_families, describe, write
from pipeline.study.comparison import Comparison, Point
from pipeline.study.family import Family
from pipeline.study.run_files import CORE_HOURS, FLOPS, SECONDS, UNITS


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0 done, 1 stopped by an error, 143 by SIGTERM or Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.action(arguments)
    except (StudyError, speeds.UnknownSpeedError, configure.ConfigurationError) as error:
        print(f"\n{type(error).__name__}: {configure.message(error)}", file=sys.stderr)
        return 1
    except sweep.Stopped as error:
        print(f"\nStopped: {error}", file=sys.stderr)
        return 143
    return 0


def plan(arguments: argparse.Namespace) -> None:
    """Prints what to run with a budget."""
    given = {CORE_HOURS: arguments.core_hours, FLOPS: arguments.flops, SECONDS: arguments.seconds}
    unit, budget = next((unit, budget) for unit, budget in given.items() if budget is not None)
    if arguments.study:
        result = planner.from_study(budget, unit, run_files.read(arguments.study), arguments.images, arguments.family)
    elif unit == CORE_HOURS:
        result = planner.from_paper(budget, arguments.images or speeds.STUDY_IMAGES)
    else:
        raise StudyError(f"The paper's rules are in core-hours: a plan in {unit} needs a study, --study=DIR.")
    print(planner.describe(result))


def run(arguments: argparse.Namespace) -> None:
    """Runs a study, or prints the commands of the runs that can start now."""
    study = load(arguments.gin_file, arguments.gin_param)
    command_line.set_up_tensorflow()
    from pipeline import registry  # TensorFlow takes seconds

    if arguments.print_commands:
        lines = sweep.commands(study, registry.bindings)
        print("\n".join(lines))
        if lines:
            print("When these have finished, the same command prints the next.", file=sys.stderr)
        else:
            print(f"All runs of {study.directory} are finished.", file=sys.stderr)
        return
    done = sweep.run(study, registry.bindings)
    diverged = sum(one.status == run_files.DIVERGED for one in done)
    print(f"{study.directory}: {len(done)} runs are finished, {diverged} of them diverged.")
    if any(len(family.variants) > 1 for family in study.members):  # a law takes several models
        print(f"Next:\n  python pipeline/scaling_study.py plot --study={study.directory} --unit={FLOPS}")


def cost(arguments: argparse.Namespace) -> None:
    """Prints what a study costs, before it is run."""
    study = load(arguments.gin_file, arguments.gin_param)
    from pipeline import study_cost

    print(study_cost.describe(study))


def estimate(arguments: argparse.Namespace) -> None:
    """Asks the TPU's compiler how fast the models of a study train."""
    study = load(arguments.gin_file, arguments.gin_param)
    from pipeline import study_cost
    from pipeline.tpu import compiler

    compiler.end_with_its_processes()
    print(f"Written to {study_cost.estimate(study, arguments.topology, arguments.replica_batch)}")


def fit(arguments: argparse.Namespace) -> tuple[list[run_files.Run], StudyAnalysis, list[Comparison], list[Point]]:
    """Fits and prints the laws of a study and how its families compare; returns runs, laws, comparisons and points."""
    runs = run_files.read(arguments.study)
    study = analyse_families(runs, arguments.unit)
    several = len(study.families) + len(study.left_out) > 1
    for name, reason in study.left_out.items():
        print(f"{name} is left out: {reason}")
    for name, analysis in study.families.items():
        print(describe(analysis))
        print(f"Written to {write(analysis, arguments.study, f'_{name}' if several else '')}")
    comparisons, reasons = comparison.compare_all(list(study.families.values()))
    points = comparison.points(runs, study)
    for each in comparisons:
        print(comparison.describe(each))
    for reason in reasons:
        print(f"Not compared: {reason}")
    for point in points:
        print(point)
    if comparisons or points:
        print(f"Written to {comparison.write(comparisons, points, arguments.study)}")
    return runs, study, comparisons, points


def plot(arguments: argparse.Namespace) -> None:
    """Fits, draws the figures, and writes the study's page."""
    from pipeline.study import figures, study_page  # Matplotlib takes a second

    runs, study, comparisons, points = fit(arguments)
    directory = arguments.output_dir or os.path.join(arguments.study, "figures")
    paths = figures.draw(runs, list(study.families.values()), directory)
    for path in paths:
        print(f"{path} (and .svg, .csv)")
    print(f"Page: {study_page.write(arguments.study, runs, study, comparisons, points, paths)}")


def hparams(arguments: argparse.Namespace) -> None:
    """Writes the runs of a study for TensorBoard's HParams."""
    from pipeline.study import hparams as tensorboard  # TensorFlow takes seconds

    folder = tensorboard.write(arguments.study, run_files.read(arguments.study))
    print(f"tensorboard --logdir={folder}")


def load(gin_files: list[str], gin_params: list[str]) -> search.Study:
    """The study that gin files and bindings over them describe."""
    configure.register({"Study": search.Study, "Family": Family, "scaling_study": scaling_study})
    configure.load(gin_files, gin_params, entry="scaling_study", tasks=())
    return configure.get("scaling_study")()


def scaling_study(study: search.Study) -> search.Study:
    """What the gin file of a study configures."""
    return study


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)

    one = actions.add_parser("plan", help="from a budget to a run")
    budget = one.add_mutually_exclusive_group(required=True)
    budget.add_argument("--core_hours", type=float, help="TPU-v4 core-hours of one pre-training")
    budget.add_argument("--flops", type=float, help="FLOPs of one pre-training; needs --study")
    budget.add_argument("--seconds", type=float, help="seconds of one pre-training, as the study's; needs --study")
    one.add_argument("--images", type=float, help="in an epoch; the study's, or the paper's 4e9, if not given")
    one.add_argument("--study", help="folder of a study whose laws to use instead of the paper's rules")
    one.add_argument("--family", help="of the study, where it has several")
    one.set_defaults(action=plan)

    for action, text in (
        (cost, "what a study takes, before it is run"),
        (estimate, "core-hours of its models, by the TPU's compiler"),
        (run, "run what is missing of a study"),
    ):
        one = actions.add_parser(action.__name__, help=text)
        one.add_argument("--gin_file", action="append", required=True, help="may be repeated, later ones win")
        one.add_argument("--gin_param", action="append", default=[], help="NAME=VALUE over the files; may be repeated")
        if action is estimate:
            one.add_argument("--topology", default="v4:2x2x1", help="kind and shape of a slice")
            one.add_argument("--replica_batch", type=int, help="images per core; the global batch, 64 at most")
        if action is run:
            one.add_argument("--print_commands", action="store_true", help="print a command a run for a scheduler")
        one.set_defaults(action=action)

    for name, text in (("fit", "fit the laws"), ("plot", "fit the laws, draw the figures and write the page")):
        one = actions.add_parser(name, help=text)
        one.add_argument("--study", required=True, help="folder of the study")
        one.add_argument("--unit", choices=list(UNITS), default=CORE_HOURS, help="of compute")
        if name == "plot":
            one.add_argument("--output_dir", help="figures in the study's folder if not given")
        one.set_defaults(action=plot if name == "plot" else fit)
    one = actions.add_parser("hparams", help="write the runs for TensorBoard's HParams")
    one.add_argument("--study", required=True, help="folder of the study")
    one.set_defaults(action=hparams)
    return parser


if __name__ == "__main__":
    sys.exit(main())
