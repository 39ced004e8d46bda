"""Whether a model of one label an example has learned anything: it is compared with guessing the class frequencies."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


def frequency_loss(counts: npt.ArrayLike) -> float:
    """The lowest cross-entropy, in nats, of an answer that is the same for all images: the class frequencies.

    `counts` are the images of each class; one class at least has images.
    """
    shares = np.asarray(counts, np.float64) / np.sum(counts)
    present = shares[shares > 0]
    return float(-np.sum(present * np.log(present)))


def warning(loss: float, counts: npt.ArrayLike) -> str:
    """What to tell the user of a model whose loss on images of these classes is `loss`; '' where guessing is worse."""
    guessing = frequency_loss(counts)
    if loss < guessing or np.count_nonzero(counts) < 2:
        return ""
    return (
        f"WARNING: this model has learned nothing: its loss, {loss:.4g}, is not below {guessing:.4g}, the loss "
        f"of guessing the class frequencies of the same {np.sum(counts):,} images. Do not use it. Start from trained "
        "weights (INITIAL_CHECKPOINT), add images of each class, or train for more EPOCHS; where the training loss "
        "does not fall either, check the labels and lower LEARNING_RATE."
    )


def notes(metrics: Mapping[str, float], counts: npt.ArrayLike) -> list[str]:
    """What guessing would score on a split, and a warning where neither `loss` nor `top1` of `metrics` is better."""
    top1 = np.max(counts) / np.sum(counts)
    line = f"Guessing the class frequencies has a loss of {frequency_loss(counts):.4g} and a top-1 of {top1:.2%}."
    text = warning(metrics["loss"], counts) if metrics["top1"] <= top1 else ""
    return [line, text] if text else [line]
