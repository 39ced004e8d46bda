"""F0 with the parameters, inputs and values of tests/golden; parameters are drawn as those behind the values were."""

import functools
import json
import math
import pathlib
import zlib

import numpy as np

from pipeline.model import classifier, nfnet, weights

FOLDER = pathlib.Path(__file__).parent / "golden"
FILES = {"deepmind": "nfnet_f0", "timm": "timm_dm_nfnet_f0"}


def load(source: str = "deepmind") -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the description and the values of the golden file of 'deepmind' or 'timm'."""
    description = json.loads((FOLDER / f"{FILES[source]}.json").read_text())
    with np.load(FOLDER / f"{FILES[source]}.npz") as values:
        return description, dict(values)


def f0(implementation: str = "plain") -> classifier.Classifier:
    """Returns F0 with the authors' golden parameters and without dropout.

    It takes seconds to build, so a process has one model for each implementation: another call sets its weights again.
    """
    model = _f0(implementation)
    weights.assign(model, arrays("deepmind"), "deepmind")
    return model


@functools.cache
def _f0(implementation: str) -> classifier.Classifier:
    return nfnet.create("F0", load()[0]["classes"], dropout_rate=0.0, implementation=implementation)


@functools.cache
def arrays(source: str) -> dict[str, np.ndarray]:
    """Returns the float32 parameters by name: `module/name`, or timm's key. Callers must not change them."""
    return {key: _draw(key, param["shape"]) for key, param in _keys(load(source)[0])}


def keys(description: dict) -> list[str]:
    """The names of the parameters in the order of the golden values."""
    return [key for key, _ in _keys(description)]


def batch(description: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 NHWC images and their integer labels."""
    size, count = description["resolution"], description["batch"]
    generator = np.random.Generator(np.random.PCG64(7))
    images = generator.standard_normal((count, size, size, 3)).astype(np.float32)
    return images, generator.integers(0, description["classes"], count)


def _keys(description):
    for param in description["params"]:
        yield param.get("key") or f"{param['module']}/{param['name']}", param


def _draw(key, shape):
    z = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    leaf = key.replace("/", ".").rsplit(".", 1)[1]
    if leaf in ("w", "weight"):
        z = z / math.sqrt(np.prod(shape[:-1] if leaf == "w" else shape[1:]))
    elif leaf == "gain":
        z = 1 + 0.1 * z
    elif leaf in ("skip_gain", "skipinit_gain"):
        z = 0.5 + 0.1 * z
    else:
        z = 0.1 * z
    return np.asarray(z, np.float32)
