"""Multiply-adds of a variant, counted from its plan without building it."""

import math

from pipeline.model import variants


def multiply_adds(variant: str, resolution: int, num_classes: int) -> int:
    """Returns the multiply-adds of the forward pass of one image of `resolution` x `resolution` pixels.

    Convolutions and linear layers alone count, as in the family's published numbers (which are for the
    test resolution of each variant); a training step takes about three times as many.
    """
    chosen = variants.get(variant)
    size, total = resolution, 0
    for conv in variants.stem(chosen):
        size = math.ceil(size / conv.stride)
        total += _conv_work(conv, size)
    for block in variants.blocks(chosen):
        for conv in block.convs:
            size = math.ceil(size / conv.stride)
            total += _conv_work(conv, size)
        if block.shortcut:
            total += _conv_work(block.shortcut, size)
        total += 2 * block.convs[-1].channels * block.squeeze
    final = variants.final_conv(chosen)
    return total + _conv_work(final, size) + final.channels * num_classes


def _conv_work(conv: variants.Conv, size: int) -> int:
    return conv.kernel**2 * conv.in_channels // conv.groups * conv.channels * size**2
