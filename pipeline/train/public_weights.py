"""Public weights as a checkpoint that fine-tunes, evaluates and exports like one of ours."""

import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline import files
from pipeline.model import nfnet, public_files, variants, weights
from pipeline.model.classifier import HEAD, Classifier
from pipeline.train import checkpoint
from pipeline.train.trained_model import load_model

_SHOWN = 5


def from_file(path: str, source: str, variant: str) -> Classifier:
    """Returns the model with the weights of a public file; its number of classes is the file's.

    Raises:
      ValueError: the file cannot be read (see `public_files.read`), or is not of this variant: names what differs.
    """
    variants.get(variant)
    arrays = public_files.read(path, source)
    (bias,) = weights.their_names([HEAD + "bias"], source).values()
    if bias not in arrays or arrays[bias].ndim != 1:
        raise ValueError(
            f"{path} has no vector {bias}, so it is not an NFNet of {source}. It holds {len(arrays)} arrays: "
            f"{_some(sorted(arrays))}."
        )
    model = nfnet.create(variant, len(arrays[bias]))
    placement = weights.assign(model, arrays, source)
    if not placement.is_complete:
        raise ValueError(
            f"{path} is not {variant}{_looks_like(arrays, source)}.\n"
            f"  arrays without a place: {_some(placement.unplaced)}\n"
            f"  variables without an array: {_some(placement.unfilled)}\n"
            f"  of another shape: {_some(placement.mismatched)}"
        )
    return model


def from_checkpoint(path: str, variant: str) -> Classifier:
    """Returns the model of a run or checkpoint, with its averaged weights where it kept some.

    Raises:
      CheckpointError: there is no checkpoint, or it is of another model.
    """
    return load_model(checkpoint.find(path), functools.partial(nfnet.create, variant))


def save(model: Classifier, directory: str, origin: str) -> str:
    """Writes the model as the checkpoint of step 0 in `directory`; returns the checkpoint's folder.

    Args:
      model: an NFNet.
      directory: of the run, for `main.py`.
      origin: path of the file or folder that the weights came from.

    Raises:
      CheckpointError: the folder holds a run's checkpoints, or cannot be written.
    """
    folder = os.path.join(directory, "checkpoints")
    for path in checkpoint.checkpoints(folder):
        if os.path.basename(path) != os.path.basename(checkpoint.folder(folder, 0)):
            raise checkpoint.CheckpointError(f"{directory} holds a run ({path}): give another folder.")
    facts = {"variant": model.variant, "imported_from": os.path.basename(origin)}
    if os.path.isfile(origin):
        facts["imported_sha256"] = files.digest(origin)
    return checkpoint.Writer(folder, {"model": weights.named(model)}).save(0, facts)


def _looks_like(arrays: Mapping[str, np.ndarray], source: str) -> str:
    """Which variants have the file's number of blocks and width of stem, as part of a sentence."""
    stem = weights.their_names(["stem/conv3/bias"], source)["stem/conv3/bias"]
    blocks = sum(name.endswith(("skip_gain", "skipinit_gain")) for name in arrays)
    width = arrays[stem].size if stem in arrays else 0
    like = [name for name, v in variants.VARIANTS.items() if sum(v.depths) == blocks and v.stem_widths[-1] == width]
    return f"; it looks like {' or '.join(like)}" if like else ""


def _some(things: Sequence[str]) -> str:
    """The first of many, and how many more there are."""
    shown = "; ".join(things[:_SHOWN])
    return f"{shown}; and {len(things) - _SHOWN} more" if len(things) > _SHOWN else shown or "none"
