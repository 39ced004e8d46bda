"""A TensorFlow pipeline for large ConvNets.

    import pipeline

    run = pipeline.load_run("runs/mine")
    run.classes
    run.predict("photos", top=3)
    pipeline.evaluate("runs/mine", split="test")

These take nothing but a run's folder, and import TensorFlow when they are used. Everything else is in the modules.
"""

import importlib

_MODULE = "pipeline.notebook"
__all__ = ["Prediction", "Run", "evaluate", "load_run"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
