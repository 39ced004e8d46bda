"""Pre-trains, fine-tunes, evaluates or exports a model.

python pipeline/main.py --gin_file=gin/f7_jft.gin                trains, or does what RUN in the configuration says
python pipeline/main.py --model_dir=runs/f7_jft --task=export    needs nothing but the run's folder
python pipeline/main.py --model_dir=runs/f7_jft --task=evaluate --split=test
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from absl import app, flags, logging

from pipeline import command_line

_GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "Gin file; may be repeated, later ones win. The run's own configuration if not given."
)
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "Gin binding over the files, `NAME=VALUE`; may be repeated.")
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run; runs/NAME of the last gin file if not given.")
_TASK = flags.DEFINE_enum(
    "task", None, ["train", "evaluate", "few_shot", "export"], "What to do; RUN of the configuration if not given."
)
_SPLIT = flags.DEFINE_string("split", None, "Split that --task=evaluate evaluates; Data.validation_split if not given.")
_FORCE_RESUME = flags.DEFINE_bool("force_resume", False, "Continue although configuration or data changed.")


def main(argv: list[str]) -> int:
    """Does the task; returns the exit code: 0 done, 1 stopped by an error, 143 by SIGTERM, 130 by Ctrl-C."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: everything is a flag, for example --gin_file=FILE.")
    if not (_GIN_FILE.value or _MODEL_DIR.value):
        raise app.UsageError("Give --gin_file=FILE, or --model_dir=RUN of a run that has been started.")
    if _SPLIT.value is not None and _TASK.value != "evaluate":
        raise app.UsageError("--split says what --task=evaluate evaluates: give both.")
    params = [*_GIN_PARAM.value, *([f"evaluate.split={_SPLIT.value!r}"] if _SPLIT.value else [])]
    logging.set_verbosity(logging.WARNING)
    from pipeline.train import tpu_machine

    tpu_machine.import_tensorflow()  # which takes seconds: flags are checked first
    from pipeline import configure, registry
    from pipeline.train import distribution

    model_dir = _MODEL_DIR.value or registry.default_model_dir(_GIN_FILE.value)
    try:
        registry.run_configured(_GIN_FILE.value, params, model_dir, _FORCE_RESUME.value, _TASK.value)
    except registry.EXPECTED_ERRORS as error:
        print(f"\n{type(error).__name__}: {configure.message(error)}", file=sys.stderr, flush=True)
        if isinstance(error, distribution.HostLostError):
            os._exit(1)  # TensorFlow's shutdown would wait for the host
        return error.exit_code if isinstance(error, registry.Preempted) else 1
    return 0


if __name__ == "__main__":
    command_line.run(main)
