"""Public NFNet weights to a checkpoint of ours, and a checkpoint to the files that those projects read.

python pipeline/import_weights.py --source=timm --file=dm_nfnet_f0.safetensors --variant=F0 --output_dir=runs/f0_timm
python pipeline/import_weights.py --checkpoint=runs/f0 --variant=F0 --export_deepmind=f0.pkl
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from absl import app, flags, logging

from pipeline import command_line

_SOURCE = flags.DEFINE_enum("source", None, ["deepmind", "timm"], "Whose file --file is.")
_FILE = flags.DEFINE_string("file", None, "Weights to import: the authors' pickle, or timm's safetensors.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run or checkpoint to export from, instead of --file.")
_VARIANT = flags.DEFINE_string("variant", None, "Variant of the weights, such as F0.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder to write a checkpoint into.")
_EXPORTS = {
    source: flags.DEFINE_string(f"export_{source}", None, f"File to write the weights to, as {source} reads them.")
    for source in ("deepmind", "timm")
}


def main(argv: list[str]) -> int:
    """Converts as the flags say; returns the exit code: 0 when done, 1 when stopped by an error."""
    exports = {source: flag.value for source, flag in _EXPORTS.items() if flag.value}
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: everything is a flag, for example --file=FILE.")
    if bool(_FILE.value) == bool(_CHECKPOINT.value) or bool(_FILE.value) != bool(_SOURCE.value):
        raise app.UsageError("Give what to read: --file with its --source, or --checkpoint.")
    if not (exports or _OUTPUT_DIR.value):
        raise app.UsageError("Give what to write: --output_dir, --export_deepmind or --export_timm.")
    logging.set_verbosity(logging.WARNING)
    from pipeline.model import public_files, weights  # TensorFlow takes seconds: flags are checked first
    from pipeline.train import checkpoint, public_weights

    try:
        if _FILE.value:
            model = public_weights.from_file(_FILE.value, _SOURCE.value, _VARIANT.value)
        else:
            model = public_weights.from_checkpoint(_CHECKPOINT.value, _VARIANT.value)
        if _OUTPUT_DIR.value:
            origin = _FILE.value or _CHECKPOINT.value
            print(f"Wrote {public_weights.save(model, _OUTPUT_DIR.value, origin)}; fine-tune from it with")
            print(f"  --gin_param='INITIAL_CHECKPOINT=\"{_OUTPUT_DIR.value}\"'")
        for source, path in exports.items():
            public_files.write(path, weights.extract(model, source), source)
            print(f"Wrote {path}.")
    except (ValueError, OSError, checkpoint.CheckpointError) as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("variant")
    command_line.run(main)
