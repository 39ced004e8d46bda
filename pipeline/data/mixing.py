"""Mixup and cutmix: each image of a batch takes part of another one, and of its labels.

Mixup (arXiv 1710.09412) blends two images; cutmix (arXiv 1905.04899) pastes a rectangle of the other one. The
NFNet authors mix half of a batch one way and half the other. They draw a second image for each one; here the
partner comes from the same batch, so that each example still counts once an epoch, and is the one `repeats`
places further on, so that two views of one example never meet.
"""

import dataclasses

import tensorflow as tf

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How the images of a batch are mixed.

    Attributes:
      mixup_alpha: mixup's share is drawn from Beta(alpha, alpha); 0 for no mixup.
      cutmix: whether to use cutmix; with mixup, the first half of the batch is mixed by mixup, the second by cutmix.
    """

    mixup_alpha: float = 0.2
    cutmix: bool = True

    def __post_init__(self):
        if self.mixup_alpha < 0:
            raise ValueError(f"Mixing.mixup_alpha is {self.mixup_alpha}; expected 0 (no mixup) or more.")
        if not self.mixup_alpha and not self.cutmix:
            raise ValueError("Mixing has neither mixup nor cutmix; leave it out, or set mixup_alpha or cutmix.")

    def group(self, repeats: int = 1) -> int:
        """The fewest images that can be mixed: two examples for each way of mixing, each `repeats` times."""
        return 2 * repeats * (2 if self.mixup_alpha and self.cutmix else 1)

    def __call__(self, batch: Batch, seed: tf.Tensor, repeats: int = 1) -> Batch:
        """Mixes a batch.

        Args:
          batch: `image` [b, height, width, 3] of any dtype, static shape; `labels` [b, k], `label_weights`
            float32 [b, k], and `weight` float32 [b], 0 in slots that hold no example. Other fields pass through.
          seed: int32 [2]; one seed always gives the same result.
          repeats: the views of an example that follow each other in the batch.

        Returns:
          The batch with mixed `image`, same dtype; `labels` [b, 2k] and `label_weights` [b, 2k]: an image's own
          labels, then its partner's, weighted by their share of the image. An empty slot is not mixed into others.

        Raises:
          ValueError: the batch cannot be mixed: too small or odd.
        """
        size = batch["image"].shape[0]
        share_seed, box_seed = tf.unstack(tf.random.split(seed, 2))
        first = size // 2 if self.mixup_alpha and self.cutmix else size if self.mixup_alpha else 0
        shares, partners = [], []
        if first:
            gamma = tf.random.stateless_gamma([2, first], share_seed, self.mixup_alpha)
            shares.append(tf.math.divide_no_nan(gamma[0], gamma[0] + gamma[1]))  # both may underflow to 0
            partners.append(_next(0, first, repeats))
        if first < size:
            shares.append(tf.random.stateless_uniform([size - first], share_seed))
            partners.append(_next(first, size, repeats))
        share, partner = tf.concat(shares, 0), tf.concat(partners, 0)
        full = (batch["weight"] > 0) & (tf.gather(batch["weight"], partner) > 0)
        share = tf.where(full, share, 1.0)

        image = batch["image"]
        other = tf.gather(image, partner)
        blended = _blend(image[:first], other[:first], share[:first, None, None])
        box, box_share = _outside_boxes(share[first:], image.shape[1], image.shape[2], box_seed)
        pasted = _blend(image[first:], other[first:], box)
        share = tf.concat([share[:first], box_share], 0)[:, None]
        weights, labels = batch["label_weights"], batch["labels"]
        return batch | {
            "image": tf.concat([blended, pasted], 0),
            "labels": tf.concat([labels, tf.gather(labels, partner)], 1),
            "label_weights": tf.concat([share * weights, (1 - share) * tf.gather(weights, partner)], 1),
        }


def _next(start: int, end: int, repeats: int) -> tf.Tensor:
    """For each place in [start, end) the place `repeats` further on, starting over at the end."""
    return start + (tf.range(end - start) + repeats) % (end - start)


def _blend(own: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """own * share + other * (1 - share) for images [n, h, w, 3] and shares [n, 1 or h, 1 or 3w]; rounds integers."""
    rows = [own.shape[0], own.shape[1], 3 * own.shape[2]]
    own_rows, other_rows = (tf.cast(tf.reshape(images, rows), tf.float32) for images in (own, other))
    mixed = other_rows + share * (own_rows - other_rows)
    mixed = tf.cast(tf.round(mixed) if own.dtype.is_integer else mixed, own.dtype)
    return tf.reshape(mixed, own.shape)


def _outside_boxes(share: tf.Tensor, height: int, width: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes that cover 1 - share of an image, clipped to it.

    Sides and centres are the authors': sqrt(1 - share) of each side, about a uniformly drawn pixel.

    Returns:
      float32 [n, height, 3 * width], 0 in the box and 1 outside; float32 [n], the share really outside.
    """
    side = tf.sqrt(1 - share)
    centre = tf.random.stateless_uniform([2, tf.size(share)], seed)

    def inside(length, centre):
        half = tf.floor(side * length / 2)
        middle = tf.floor(centre * length)
        place = tf.range(length, dtype=tf.float32)[None]
        return tf.cast((place >= (middle - half)[:, None]) & (place < (middle + half)[:, None]), tf.float32)

    rows, columns = inside(height, centre[0]), inside(width, centre[1])
    outside = 1 - rows[:, :, None] * tf.repeat(columns, 3, 1)[:, None, :]
    return outside, 1 - tf.reduce_mean(rows, 1) * tf.reduce_mean(columns, 1)
