"""The public NFNet weights and ours: which array of theirs is which variable of ours, and back.

The authors' code ('deepmind') has our formulas. timm's differs in two: it standardises kernels with
`sqrt(var + 1e-5)`, a constant factor of each output channel's gain, by which gains are converted here; and its
GELU is exact, not the tanh approximation that the weights were trained with, which is left as it is
(3e-4 of the logits' norm on random weights).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf
import tf_keras

from pipeline.model import layers

SOURCES = ("deepmind", "timm")
TIMM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Placement:
    """What `assign` did: `placed` variables, `unplaced` arrays and `unfilled` variables, by name.

    `mismatched` holds one sentence for each array whose shape does not fit its variable; such an array
    is not placed, and its variable is unfilled.
    """

    placed: tuple[str, ...]
    unplaced: tuple[str, ...]
    unfilled: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every array was placed and every variable filled."""
        return not (self.unplaced or self.unfilled or self.mismatched)


def named(model: tf_keras.Model) -> dict[str, tf.Variable]:
    """Returns the model's variables by name, `stage0/block0/conv0/kernel` for example, in creation order."""
    return {variable.name.split(":")[0]: unwrapped(variable) for variable in model.variables}


def unwrapped(variable: tf.Variable) -> tf.Variable:
    """The variable itself, where a Keras layer of mixed precision holds one that casts it when it is read.

    Private: Keras has no public way from the one to the other.
    """
    return getattr(variable, "_variable", variable)


def assign(model: tf_keras.Model, arrays: Mapping[str, np.ndarray], source: str) -> Placement:
    """Sets the model's variables to public weights.

    Args:
      model: an NFNet.
      arrays: their name to array: `module/name` for 'deepmind', state-dict keys for 'timm'.
      source: 'deepmind' or 'timm'.

    Returns:
      What was placed and what was not. Arrays that fit are placed even if others are not; the caller
      decides whether an incomplete placement is an error.
    """
    variables = named(model)
    ours = {theirs: name for name, theirs in their_names(variables, source).items()}
    placed, unplaced, mismatched = [], [], []
    for key, array in arrays.items():
        if key not in ours:
            unplaced.append(key)
            continue
        variable = variables[ours[key]]
        expected = _to_theirs(np.empty(variable.shape), key, source).shape
        if np.shape(array) != expected:
            mismatched.append(f"{key} has shape {list(np.shape(array))}; the model needs {list(expected)}")
            continue
        value = _to_ours(np.asarray(array, np.float32), key, source).reshape(variable.shape)
        variable.assign(value)
        placed.append(ours[key])
    if source == "timm":
        for name in placed:
            if name.endswith("/gain"):
                variables[name].assign(variables[name] * _timm_gain_ratio(_kernel_of(name, variables)))
    unfilled = [name for name in variables if name not in set(placed)]
    return Placement(tuple(placed), tuple(unplaced), tuple(unfilled), tuple(mismatched))


def extract(model: tf_keras.Model, source: str) -> dict[str, np.ndarray]:
    """Returns the model's weights as float32 arrays named and shaped as `source` has them."""
    variables = named(model)
    arrays = {}
    for name, theirs in their_names(variables, source).items():
        value = variables[name].numpy()
        if source == "timm" and name.endswith("/gain"):
            value = (value / _timm_gain_ratio(_kernel_of(name, variables))).astype(np.float32)
        arrays[theirs] = np.array(_to_theirs(value, theirs, source), order="C")
    return arrays


def their_names(names: Iterable[str], source: str) -> dict[str, str]:
    """Returns the name that `source` gives each of a model's variables, by our name."""
    if source not in SOURCES:
        raise ValueError(f"Unknown source {source!r}; expected one of {', '.join(SOURCES)}.")
    names = list(names)
    blocks = list(dict.fromkeys(match[0] for name in names if (match := _BLOCK.match(name))))
    rename = _deepmind_name if source == "deepmind" else _timm_name
    return {name: rename(name, blocks) for name in names}


_BLOCK = re.compile(r"stage(\d+)/block(\d+)/")
_DEEPMIND_LAYERS = {"squeeze_excite/fc0": "squeeze_excite/~/linear", "squeeze_excite/fc1": "squeeze_excite/~/linear_1"}
_TIMM_LAYERS = {
    "conv0": "conv1",
    "conv1": "conv2",
    "conv1b": "conv2b",
    "conv2": "conv3",
    "conv_shortcut": "downsample.conv",
    "squeeze_excite/fc0": "attn_last.fc1",
    "squeeze_excite/fc1": "attn_last.fc2",
    "linear": "head.fc",
}


def _deepmind_name(name: str, blocks: list[str]) -> str:
    """Modules in Haiku's naming: blocks are numbered through, leaves of linear layers are `w` and `b`."""
    path = "NFNet/~/"
    if match := _BLOCK.match(name):
        index = blocks.index(match[0])
        path += f"nf_block_{index}/" if index else "nf_block/"
        name = name.removeprefix(match[0])
        if name == "skip_gain":
            return path + name
        path += "~/"
    layer, leaf = name.rsplit("/", 1)
    is_linear = layer == "linear" or layer in _DEEPMIND_LAYERS
    leaf = {"kernel": "w", "bias": "b" if is_linear else "bias"}.get(leaf, leaf)
    return f"{path}{_DEEPMIND_LAYERS.get(layer, layer).replace('stem/', 'stem_')}/{leaf}"


def _timm_name(name: str, blocks: list[str]) -> str:
    """State-dict keys: stages and blocks by index, convolutions counted from 1."""
    path = ""
    if match := _BLOCK.match(name):
        path = f"stages.{match[1]}.{match[2]}."
        name = name.removeprefix(match[0])
        if name == "skip_gain":
            return path + "skipinit_gain"
    layer, leaf = name.rsplit("/", 1)
    if layer.startswith("stem/conv"):
        layer = f"stem.conv{int(layer.removeprefix('stem/conv')) + 1}"
    return f"{path}{_TIMM_LAYERS.get(layer, layer)}.{'weight' if leaf == 'kernel' else leaf}"


def _to_theirs(array: np.ndarray, key: str, source: str) -> np.ndarray:
    """Our HWIO kernel, [in, out] matrix or vector in the other's layout; timm's is [out, in, h, w]."""
    if source == "deepmind":
        return array
    if key.endswith(".gain"):
        return array.reshape(-1, 1, 1, 1)
    if not key.endswith(".weight"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T.reshape(*array.T.shape, 1, 1) if ".attn_last." in key else array.T


def _to_ours(array: np.ndarray, key: str, source: str) -> np.ndarray:
    """The inverse of `_to_theirs`, but for axes of length 1."""
    if source == "deepmind" or not key.endswith(".weight"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _kernel_of(gain: str, variables: Mapping[str, tf.Variable]) -> np.ndarray:
    return variables[gain.removesuffix("gain") + "kernel"].numpy()


def _timm_gain_ratio(kernel: np.ndarray) -> np.ndarray:
    """Our gain over timm's for an HWIO kernel, so that both standardise to the same weights."""
    fan_in = np.prod(kernel.shape[:-1])
    variance = np.var(kernel.astype(np.float64), axis=(0, 1, 2))
    ours = np.maximum(variance * fan_in, layers.STANDARDIZATION_EPSILON)
    return np.sqrt(ours / (fan_in * (variance + TIMM_EPSILON)))
