"""Pre-trains, fine-tunes, evaluates or exports, as gin says: `python pipeline/main.py --gin_file=gin/f7_jft.gin`."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging

_GIN_FILE = flags.DEFINE_multi_string("gin_file", None, "Gin file; may be repeated, later ones win.")
_GIN_PARAM = flags.DEFINE_multi_string("gin_param", [], "Gin binding over the files, `NAME=VALUE`; may be repeated.")
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run; runs/NAME of the last gin file if not given.")
_FORCE_RESUME = flags.DEFINE_bool("force_resume", False, "Go on although configuration or data changed.")


def main(argv: list[str]) -> int:
    """Runs what `main.run` names; returns the exit code: 0 when done, 1 when stopped by an error."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: everything is a flag, for example --gin_file=FILE.")
    logging.set_verbosity(logging.WARNING)
    from pipeline import configure, registry  # TensorFlow takes seconds: flags are checked first

    name = os.path.splitext(os.path.basename(_GIN_FILE.value[-1]))[0]
    model_dir = _MODEL_DIR.value or os.path.join("runs", name)
    try:
        registry.run_configured(_GIN_FILE.value, _GIN_PARAM.value, model_dir, _FORCE_RESUME.value)
    except registry.EXPECTED_ERRORS as error:
        print(f"\n{type(error).__name__}: {configure.message(error)}", file=sys.stderr)
        return 143 if isinstance(error, registry.Preempted) else 1
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("gin_file")
    app.run(main)
