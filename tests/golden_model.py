"""The parameters and inputs behind tests/golden, made from names by the rule that the values came with."""

import json
import math
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "golden"


def load(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the description and the values of a golden file, 'nfnet_f0' or 'timm_dm_nfnet_f0'."""
    description = json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(FOLDER / f"{name}.npz") as values:
        return description, dict(values)


def arrays(description: dict) -> dict[str, np.ndarray]:
    """Returns the float32 parameters by name: `module/name`, or timm's key."""
    return {key: _draw(key, param["shape"]) for key, param in _keys(description)}


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
