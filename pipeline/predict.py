"""Classifies image files with a trained model.

python pipeline/predict.py --model_dir=RUN IMAGE...      with a run, which is exported first if it was not yet
python pipeline/predict.py --saved_model=DIR IMAGE...    with an exported SavedModel
"""

import contextlib
import dataclasses
import json
import os
import sys
import typing

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

if typing.TYPE_CHECKING:
    from pipeline.serve import client

_SAVED_MODEL = flags.DEFINE_string("saved_model", None, "Folder of the export, or one of its version folders.")
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of a run, instead of --saved_model.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a line instead of a table.")


def main(argv: list[str]) -> int:
    """Prints the best classes of each image; returns 1 where an image could not be classified."""
    if len(argv) < 2:
        raise app.UsageError("Name at least one image file.")
    if bool(_SAVED_MODEL.value) == bool(_MODEL_DIR.value):
        raise app.UsageError("Give --model_dir=RUN or --saved_model=DIR.")
    logging.set_verbosity(logging.WARNING)
    from pipeline.train import tpu_machine

    tpu_machine.import_tensorflow()  # which takes seconds: flags are checked first
    from pipeline import registry
    from pipeline.serve import client

    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for predictions
            saved_model = _SAVED_MODEL.value or registry.exported(_MODEL_DIR.value)
        predictions = client.predict(client.load(saved_model), argv[1:])
    except (FileNotFoundError, *registry.EXPECTED_ERRORS) as error:
        print(error, file=sys.stderr)
        return 1
    if _JSON.value:
        for prediction in predictions:
            print(json.dumps(dataclasses.asdict(prediction)))
    else:
        Console().print(_table(predictions))
    return 1 if any(prediction.error for prediction in predictions) else 0


def _table(predictions: list["client.Prediction"]) -> Table:
    table = Table("image", "class", "probability")
    for prediction in predictions:
        rows = zip(prediction.classes, (f"{p:.1%}" for p in prediction.probabilities), strict=True)
        for i, (name, probability) in enumerate(rows):
            table.add_row(prediction.image if i == 0 else "", name, probability)
        if prediction.error:
            table.add_row(prediction.image, f"not classified: {prediction.error}", "")
        table.add_section()
    return table


if __name__ == "__main__":
    app.run(main)
