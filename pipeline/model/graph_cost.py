"""Multiply-adds of any model, counted in the graph that it traces to."""

import math

import tensorflow as tf
import tf_keras


def multiply_adds(model: tf_keras.Model, resolution: int) -> int:
    """Returns the multiply-adds of the forward pass of one image of `resolution` x `resolution` pixels.

    Convolutions, matrix products and tensor contractions count; for an NFNet this equals `cost.multiply_adds`. Layers
    that are `tf.function`s of their own are not counted. (TensorFlow's profiler, which the Garden's `try_count_flops`
    uses, adds elementwise operations, 14% for NFNet-nano, and copies all weights into the graph.)
    """

    def forward(images):
        return model(images, training=False)

    spec = tf.TensorSpec([1, resolution, resolution, 3], tf.float32)
    graph = tf.function(forward, autograph=False).get_concrete_function(spec).graph
    return sum(count(operation) for operation in graph.get_operations())


def count(operation: tf.Operation) -> int:
    """Multiply-adds of one operation with static shapes; 0 for those that are no sums of products."""
    if operation.type not in ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2", "Einsum"):
        return 0
    shapes = [tuple(tensor.shape.as_list()) for tensor in operation.inputs]
    output = math.prod(operation.outputs[0].shape.as_list())
    if operation.type == "Conv2D":
        return output * math.prod(shapes[1][:-1])
    if operation.type == "DepthwiseConv2dNative":
        return output * math.prod(shapes[1][:2])
    if operation.type == "Einsum":
        terms = operation.get_attr("equation").decode().split("->")[0].split(",")
        axes = zip("".join(terms), [size for shape in shapes for size in shape], strict=True)
        return math.prod(dict(axes).values())
    transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return output * shapes[0][-2 if transposed else -1]
