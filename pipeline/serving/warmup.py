"""Warm-up requests: what TensorFlow Serving sends to a version itself before it serves, so that no user waits."""

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from pipeline.data import record
from pipeline.serving import golden, servable

FILE = "tf_serving_warmup_requests"  # in `assets.extra/`; the name is TensorFlow Serving's
BATCHES = (1, 8)


def requests(size: int) -> list[bytes]:
    """A serialized `PredictionLog` for each signature and each of `BATCHES`; images have `size` pixels a side."""
    files = list(golden.images().values())
    records = [record.serialize({"image": data, "key": "", "id": 0, "label": 0}, record.SINGLE_LABEL) for data in files]
    pixels = np.zeros([max(BATCHES), size, size, 3], np.uint8)
    image_bytes = {"image_bytes": np.array(files, object)}
    inputs = {
        servable.DEFAULT: image_bytes,
        servable.BYTES: image_bytes,
        servable.IMAGES: {"images": pixels},
        servable.EXAMPLES: {"examples": np.array(records, object)},
        servable.FEATURES: image_bytes,
    }
    return [_request(name, values, batch) for name, values in inputs.items() for batch in BATCHES]


def _request(signature: str, inputs: dict[str, np.ndarray], batch: int) -> bytes:
    request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(signature_name=signature))
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values[:batch]))
    log = prediction_log_pb2.PredictLog(request=request)
    return prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString(deterministic=True)
