"""The files in which public NFNet weights come, and in which their projects read ours.

A file is untrusted: a pickle may name array types alone, whatever else it names is refused unexecuted.
"""

import os
import pickle
import zipfile
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from pipeline import files


class WeightsFileError(ValueError):
    """A file of weights cannot be read; the message names it and says why."""


def read(path: str, source: str) -> dict[str, np.ndarray]:
    """Returns the file's arrays by the names of `source` (see `weights.assign`).

    Args:
      path: for 'deepmind' a pickled tree of arrays (module to name to array), or an `.npz` of `module/name`; for
        'timm' a safetensors file.
      source: 'deepmind' or 'timm'.

    Raises:
      WeightsFileError: there is no such file, it is truncated or of another format, or it holds other than arrays.
    """
    if not os.path.isfile(path):
        raise WeightsFileError(f"There is no file {path}.")
    arrays = _read_safetensors(path) if source == "timm" else _read_tree(path)
    for name, array in arrays.items():
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise WeightsFileError(f"{path} holds {name} as {array.dtype}; weights are floating-point numbers.")
    return arrays


def write(path: str, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Writes arrays, named as `source` names them, as the file that its project reads; whole or not at all."""
    if source == "timm":
        content = safetensors.numpy.save(dict(arrays), metadata={"format": "pt"})
    else:
        tree: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            module, leaf = name.rsplit("/", 1)
            tree.setdefault(module, {})[leaf] = array
        content = pickle.dumps(tree, protocol=4)
    files.write_atomically(path, content)


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise WeightsFileError(f"{path} is not a whole safetensors file ({error}): download it again.") from error


def _read_tree(path: str) -> dict[str, np.ndarray]:
    try:
        if zipfile.is_zipfile(path):
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        with open(path, "rb") as file:
            tree = _ArrayUnpickler(file).load()
    except _RefusedError as error:
        raise WeightsFileError(f"{path} is refused: {error}.") from error
    # A damaged pickle is a random program: what its opcodes fail with is open.
    except Exception as error:
        raise WeightsFileError(
            f"{path} is not a whole pickle of arrays ({type(error).__name__}: {error}): download it again."
        ) from error
    if isinstance(tree, (tuple, list)) and tree:
        tree = tree[0]  # parameters, then states, of which NFNets have none
    return _flatten(path, tree)


def _flatten(path: str, tree: object) -> dict[str, np.ndarray]:
    if not isinstance(tree, dict) or not tree:
        raise WeightsFileError(f"{path} holds a {type(tree).__name__}; expected a tree: module to name to array.")
    arrays = {}
    for module, members in tree.items():
        for name, array in members.items() if isinstance(members, dict) else [("", members)]:
            if not isinstance(array, (np.ndarray, np.generic)):
                raise WeightsFileError(
                    f"{path} holds a {type(array).__name__} at {module}/{name}; expected a tree of arrays."
                )
            arrays[f"{module}/{name}".rstrip("/")] = np.asarray(array)
    return arrays


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something other than arrays of numbers."""


class _Array:
    """Stands for the functions that a pickle calls to make arrays; has no attribute that a pickle could set."""

    __slots__ = ()


class _Reconstruct(_Array):
    def __call__(self, subtype, shape, code):
        # The array's state, which follows in the pickle, holds shape, type and bytes, and must agree in itself.
        return np.ndarray((0,), np.uint8)


class _FromBuffer(_Array):
    def __call__(self, buffer, dtype, shape, order):
        return np.frombuffer(buffer, _numeric(dtype)).reshape(shape, order=order)


class _Scalar(_Array):
    def __call__(self, dtype, data):
        return np.frombuffer(data, _numeric(dtype), count=1)[0]


class _DType(_Array):
    def __call__(self, code, align=False, copy=True):
        return _numeric(np.dtype(str(code), copy=True))


class _Latin1(_Array):
    def __call__(self, text, encoding):
        if encoding not in ("latin1", "latin-1"):
            raise _RefusedError(f"it asks for the codec {encoding!r}; arrays need none but latin1")
        return str(text).encode("latin1")


def _numeric(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "fiub":
        raise _RefusedError(f"it holds values of type {dtype}; weights are numbers")
    return dtype


_ALLOWED = {
    ("numpy", "dtype"): _DType(),
    ("numpy", "ndarray"): _Array(),
    ("_codecs", "encode"): _Latin1(),  # how protocols 0 to 2 spell bytes
    **{
        (f"numpy.{core}.{module}", name): make
        for core in ("core", "_core")
        for module, name, make in (
            ("multiarray", "_reconstruct", _Reconstruct()),
            ("multiarray", "scalar", _Scalar()),
            ("numeric", "_frombuffer", _FromBuffer()),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays and plain containers alone; every other name in the pickle ends the reading."""

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise _RefusedError(
                f"it names {module}.{name}, and a file of weights may name NumPy arrays alone; nothing was executed"
            )
        return _ALLOWED[module, name]
