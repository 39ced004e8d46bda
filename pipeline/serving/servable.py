"""What a SavedModel answers: the signatures of a trained model, as graphs of TensorFlow's own operations."""

import dataclasses
import functools
from collections.abc import Sequence

import tensorflow as tf

from pipeline.data import augment, record
from pipeline.model.classifier import Classifier
from pipeline.objective import SOFTMAX, Objective
from pipeline.serving import elementwise, folding, view

BYTES, IMAGES, EXAMPLES, FEATURES = "predict_bytes", "predict_images", "predict_examples", "features"
DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY  # another name of `BYTES`


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is served besides the weights.

    Attributes:
      classes: class names in label order; where the model's last layer is wider, its other logits are cut off.
      size: evaluation resolution, pixels.
      top: how many classes an answer names for each image; all where there are fewer.
      objective: what the model has learned.
      eval_view: geometry of the evaluation view, one of `augment.EVAL_VIEWS`.
    """

    classes: Sequence[str]
    size: int
    top: int = 5
    objective: Objective = SOFTMAX
    eval_view: str = augment.CROP_RESIZE


class Servable(tf.Module):
    """A classifier of images through the evaluation view.

    Each method is a signature. All but `features` return, with the batch first in each output:

    - `probabilities` and `logits`, float32 [batch, classes], in label order;
    - `top_classes` string [batch, top] and `top_probabilities` float32 [batch, top], best first;
    - `valid` bool [batch]: whether the image could be used. One that could not does not fail the others of its batch:
      its numbers are 0 and its names empty.
    """

    def __init__(self, model: Classifier, settings: Settings):
        super().__init__(name="servable")
        self.inference_form = folding.fold(model)
        self._settings = settings
        # Graphs that several signatures call. As attributes they would be traced once more to be saved themselves.
        images = tf.TensorSpec([None, settings.size, settings.size, 3], tf.uint8)
        self._model = tf.function(self.inference_form.__call__, input_signature=[images]).__call__
        self._views = _views(settings.size, settings.eval_view).__call__
        self._names = tf.constant(list(settings.classes))
        self._top = min(settings.top, len(settings.classes))

    def graphs(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Traces the signatures: name to graph, as `tf.saved_model.save` takes them."""
        files = tf.TensorSpec([None], tf.string, "image_bytes")
        predict = tf.function(self.predict_bytes, input_signature=[files])
        pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, "images")
        examples = tf.TensorSpec([None], tf.string, "examples")
        methods = {
            DEFAULT: predict,
            BYTES: predict,
            IMAGES: tf.function(self.predict_images, input_signature=[pixels]),
            EXAMPLES: tf.function(self.predict_examples, input_signature=[examples]),
            FEATURES: tf.function(self.features, input_signature=[files]),
        }
        return {name: method.get_concrete_function() for name, method in methods.items()}

    def predict_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classifies image files, string [batch], of the formats that `view.py` decodes."""
        return self._predict(*self._views(image_bytes))

    def predict_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classifies RGB images, uint8 [batch, height, width, 3], of any height and width but 0."""
        shape = tf.shape(images)
        valid = tf.fill(shape[:1], tf.reduce_all(shape[1:3] > 0))
        images = tf.pad(images, [[0, 0], *([[0, tf.cast(shape[axis] == 0, tf.int32)] for axis in (1, 2)]), [0, 0]])
        return self._predict(augment.view_of_decoded(images, self._settings.size, self._settings.eval_view), valid)

    def predict_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classifies the images of records (serialized `tf.train.Example`), string [batch]."""
        images, _ = elementwise.apply(record.image, [examples], tf.TensorSpec([], tf.string))  # '' where there is none
        return self._predict(*self._views(images))

    def features(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Image files, string [batch], to `features` float32 [batch, channels] before the last layer, and `valid`."""
        images, valid = self._views(image_bytes)
        return {"features": _where(valid, self._model(images).features), "valid": valid}

    def _predict(self, images: tf.Tensor, valid: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.cast(self._model(images).logits, tf.float32)[:, : self._names.shape[0]]
        probabilities = self._settings.objective.activation(logits)
        top_probabilities, top = tf.math.top_k(probabilities, self._top)
        return {
            "probabilities": _where(valid, probabilities),
            "logits": _where(valid, logits),
            "top_classes": _where(valid, tf.gather(self._names, top)),
            "top_probabilities": _where(valid, top_probabilities),
            "valid": valid,
        }


@functools.cache
def _views(size: int, eval_view: str) -> tf.types.experimental.PolymorphicFunction:
    """`view.views` as one graph, the same for all models of a size: to trace it takes a third of an export's time."""
    return tf.function(
        lambda image_bytes: view.views(image_bytes, size, eval_view),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )


def _where(valid: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`values` [batch, n] in the rows that are valid, 0 or '' in the others."""
    return tf.where(valid[:, tf.newaxis], values, tf.zeros([], values.dtype))
