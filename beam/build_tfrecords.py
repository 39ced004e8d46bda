"""Turns labelled images into TFRecords with a manifest, on any Beam runner.

    python beam/build_tfrecords.py --input=IMAGES --output_dir=DIR --name=NAME --validation_fraction=0.05

See docs/ingest.md. Exit status: 0 when the record set is complete, 1 when it could not be built, 2 for a wrong flag.
"""

import contextlib
import logging
import os
import sys

logging.getLogger().setLevel(logging.ERROR)  # before Apache Beam imports cloud libraries, and warns
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TensorFlow imports a Keras: the quicker one
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from beam import options, startup
from beam.errors import BuildError

if __name__ == "__main__":
    with contextlib.suppress(BuildError):  # `launch` says what is wrong
        options.parse(sys.argv[1:])  # help and unknown flags end here, before TensorFlow, whose import takes seconds
    startup.import_tensorflow()
    from beam import launch

    sys.exit(launch.main(sys.argv[1:]))
