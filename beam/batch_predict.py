"""Classifies many images, or a record set, with an exported SavedModel, on any Beam runner.

    python beam/batch_predict.py --saved_model=DIR --images=FOLDER --output=FOLDER
    python beam/batch_predict.py --saved_model=DIR --records=RECORDS --split=validation --output=FOLDER --evaluate

See docs/batch_prediction.md. Exit status: 0 when there is a row for each image and no more images failed than allowed,
1 when not, 2 for a wrong flag.
"""

import contextlib
import logging
import os
import sys

logging.getLogger().setLevel(logging.ERROR)  # before Apache Beam imports cloud libraries, and warns
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TensorFlow imports a Keras: the quicker one
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # quicker on CPUs on which TensorFlow leaves it off
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from beam.errors import PredictionError
from beam.prediction import options

if __name__ == "__main__":
    with contextlib.suppress(PredictionError):  # `launch` says what is wrong
        options.parse(sys.argv[1:])  # help and unknown flags end here, before TensorFlow, whose import takes seconds
    from beam.prediction import launch

    sys.exit(launch.main(sys.argv[1:]))
