"""Parameters of a variant, counted from its plan: what built models and published numbers are compared with."""

from pipeline.model import variants


def parameters(variant: str, num_classes: int) -> int:
    """The number of trainable parameters of `nfnet.create(variant, num_classes)`."""
    chosen = variants.get(variant)
    blocks, final = variants.blocks(chosen), variants.final_conv(chosen)
    convs = [*variants.stem(chosen), final]
    total = linear(final.channels, num_classes)
    for block in blocks:
        convs += [*block.convs, *([block.shortcut] if block.shortcut else [])]
        channels = block.convs[-1].channels
        total += linear(channels, block.squeeze) + linear(block.squeeze, channels) + 1  # and skip_gain
    # Kernel, gain and bias.
    return total + sum(conv.channels * (conv.kernel**2 * conv.in_channels // conv.groups + 2) for conv in convs)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
