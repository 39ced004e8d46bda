"""Compiles the training step of an experiment for TPUs, without a TPU, and prints what a run would take.

    python pipeline/tpu_check.py --gin_file=gin/f7_jft.gin --topology=v4:4x4x4
    python pipeline/tpu_check.py --gin_file=gin/f7_jft.gin --topology=v4:4x4x4 --rehearse --model_dir=gs://BUCKET/RUN
    python pipeline/tpu_check.py --report=gs://BUCKET/RUN --topology=v4:4x4x4

The exit code is 0 if the step fits into memory, 2 if not, 1 if it could not be checked. With --rehearse it is 0 only if
a run would take its first step.
"""

import functools
import json
import os
import sys
import typing

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

from pipeline import command_line

if typing.TYPE_CHECKING:
    from pipeline.tpu.check import Configure
    from pipeline.tpu.chips import Topology
    from pipeline.train.experiment import Experiment

_GIN_FILE = flags.DEFINE_multi_string("gin_file", None, "Gin file; may be repeated, later ones win.")
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "Gin binding over the files, `NAME=VALUE`; may be repeated.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Kind and shape of a slice: v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:2x2.")
_CHIP_CONFIG = flags.DEFINE_enum(
    "chip_config",
    None,
    ["legacy", "megacore"],
    "A core is a device, or a chip; v4: legacy, v5p: megacore if not given.",
)
_REPLICA_BATCH = flags.DEFINE_integer(
    "replica_batch", None, "Images per replica; GLOBAL_BATCH over replicas if not given.", lower_bound=1
)
_REPLICAS = flags.DEFINE_integer(
    "replicas", None, "Replicas to compile for; all of the topology if not given, 1 without collectives.", lower_bound=1
)
_IMAGES = flags.DEFINE_integer(
    "images", None, "Images of an epoch; the records' own, or Data.images, if not given.", lower_bound=1
)
_REHEARSE = flags.DEFINE_bool("rehearse", False, "Go through all that a run meets before its first step.")
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run to rehearse; runs/NAME if not given.")
_REPORT = flags.DEFINE_string("report", None, "Folder of a run on this topology: its speed beside the estimate.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch of a replica by compiling, not by prediction.")
_JSON = flags.DEFINE_string("json", None, "File to write the estimate to.")
_HLO = flags.DEFINE_string("hlo", None, "File to write the optimised program to, as text.")


def main(argv: list[str]) -> int:
    """Checks one experiment; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: everything is a flag, for example --gin_file=FILE.")
    if not (_GIN_FILE.value or _REPORT.value):
        raise app.UsageError("Give --gin_file=FILE, or --report=RUN of a run that has been started.")
    if _REHEARSE.value and (_REPLICA_BATCH.value or _SEARCH.value or _REPORT.value or _REPLICAS.value):
        raise app.UsageError(
            "--rehearse takes the run as it is: without --replica_batch, --replicas, --search and --report."
        )
    if _REPORT.value and _REPLICAS.value:
        raise app.UsageError("--report takes the run as it is, on all replicas of its topology: without --replicas.")
    logging.set_verbosity(logging.WARNING)
    from pipeline import files
    from pipeline.tpu import chips, compiler

    compiler.end_with_its_processes()
    try:
        for path in filter(None, (_JSON.value, _HLO.value)):  # before minutes of work
            if not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
                raise OSError(f"{path} cannot be written: its folder does not exist, or takes no files.")
        topology = chips.topology(_TOPOLOGY.value, _CHIP_CONFIG.value)
        compiler.versions()  # before TensorFlow, which takes seconds
    except (chips.TopologyError, compiler.CompilerError, OSError) as error:
        return _stop(error)
    from pipeline import configure, registry

    try:
        gin_files = _GIN_FILE.value or [registry.saved_config(_REPORT.value)]
        configured = functools.partial(registry.configured, gin_files, _GIN_PARAM.value)
        experiment = configured()
        work = _rehearse if _REHEARSE.value else _estimate
        code, fields, hlo = work(experiment, configured, topology)
    except (*registry.EXPECTED_ERRORS, compiler.CompilerError) as error:
        return _stop(error, configure.message(error))
    for path, text in ((_JSON.value, json.dumps(fields, indent=1) + "\n"), (_HLO.value, hlo)):
        if path:
            files.write_atomically(path, text)
    return code


def _estimate(experiment: "Experiment", configured: "Configure", topology: "Topology") -> tuple[int, dict, str]:
    """Prints the estimate, and beside it the run of --report; returns exit code, JSON fields and program."""
    from pipeline import report
    from pipeline.tpu import check, estimate_table, run_report

    estimate, hlo = check.check(
        experiment,
        configured,
        topology,
        _REPLICA_BATCH.value,
        _IMAGES.value,
        _SEARCH.value,
        _REPLICAS.value,
        estimate_table.stage,
    )
    estimate_table.show(estimate, check.advice(estimate, experiment))
    fields = estimate.as_dict()
    if _REPORT.value and estimate.time:
        fields["report"] = run_report.numbers(report.read_metrics(_REPORT.value), estimate, estimate.time)
        estimate_table.show_report(fields["report"])
    return 0 if estimate.fit.fits else 2, fields, hlo


def _rehearse(experiment: "Experiment", configured: "Configure", topology: "Topology") -> tuple[int, dict, str]:
    """Prints what a run meets before its first step; returns as `_estimate`."""
    from pipeline import configure, registry
    from pipeline.tpu import check, estimate_table, rehearsal

    model_dir = _MODEL_DIR.value or registry.default_model_dir(_GIN_FILE.value)
    loop = configure.get("Loop")()
    rehearsed, hlo = rehearsal.rehearse(
        experiment, configured, loop, model_dir, topology, _IMAGES.value, estimate_table.stage
    )
    if estimate := rehearsed.estimate:
        estimate_table.show(estimate, check.advice(estimate, experiment))
    estimate_table.show_rehearsal(rehearsed)
    fits = estimate is None or estimate.fit.fits
    return (0 if rehearsed.starts else 1) if fits else 2, rehearsed.as_dict(), hlo


def _stop(error: Exception, message: str = "") -> int:
    print(f"\n{type(error).__name__}: {message or error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    flags.mark_flags_as_required(["topology"])
    command_line.run(main)
