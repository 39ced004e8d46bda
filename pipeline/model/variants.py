"""The NFNet family: one table of variants, and the plan of convolutions that each of them stands for.

Pure Python: `nfnet.py` builds variables from the plan, `cost.py` counts with it.
Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", 2021.
"""

import dataclasses
import math

ALPHA = 0.2  # how much a block's branch adds to its shortcut
BOTTLENECK = 0.5  # a block's inner width as a share of its output width, rounded down to whole groups
STAGE_STRIDES = (1, 2, 2, 2)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One member of the family: four stages' widths and depths, and what varies with size.

    Attributes:
      widths: output channels of each stage.
      depths: blocks in each stage.
      dropout_rate: rate before the linear layer with which the variant was published.
      group_width: channels in each group of a 3x3 convolution.
      stem_widths: output channels of the stem's four convolutions.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    dropout_rate: float
    group_width: int
    stem_widths: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Conv:
    """A weight-standardised convolution, `SAME` padding; `name` is the path of its variables."""

    name: str
    in_channels: int
    channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block: `shortcut + ALPHA * skip_gain * branch(beta * activation(x))`.

    Attributes:
      name: path of its variables.
      stage: index of its stage.
      convs: the branch's convolutions, in order.
      squeeze: hidden width of the squeeze-excite layer after them.
      shortcut: 1x1 convolution of a transition block's shortcut, None where the shortcut is the input.
      stride: of the transition, taken by the first 3x3 convolution and by the shortcut's average pooling.
      beta: one over the expected standard deviation of the block's input.
      depth_fraction: the block's index over the number of blocks; scales the rate of stochastic depth.
    """

    name: str
    stage: int
    convs: tuple[Conv, ...]
    squeeze: int
    shortcut: Conv | None
    stride: int
    beta: float
    depth_fraction: float


def _published(multiple: int, dropout_rate: float, widths: tuple[int, int, int, int]) -> Variant:
    depths = (multiple, 2 * multiple, 6 * multiple, 3 * multiple)
    return Variant(widths, depths, dropout_rate, 128, (16, 32, 64, widths[0] // 2))


_DROPOUT_RATES = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)

VARIANTS: dict[str, Variant] = {
    "femto": Variant((16, 16, 32, 32), (1, 1, 1, 1), 0.0, 8, (4, 4, 8, 8)),
    "pico": Variant((16, 32, 64, 64), (1, 1, 2, 1), 0.0, 8, (8, 8, 12, 12)),
    "nano": Variant((32, 64, 128, 128), (1, 1, 2, 1), 0.0, 8, (8, 12, 16, 16)),
    "micro": Variant((48, 96, 192, 192), (1, 1, 3, 1), 0.0, 8, (12, 12, 24, 24)),
    "tiny": Variant((64, 128, 256, 256), (1, 2, 3, 1), 0.1, 16, (16, 16, 32, 32)),
    **{f"F{i}": _published(i + 1, r, (256, 512, 1536, 1536)) for i, r in enumerate(_DROPOUT_RATES)},
    **{f"F{i}+": _published(i + 1, r, (384, 768, 2048, 2048)) for i, r in enumerate(_DROPOUT_RATES)},
}

#: Variants of our own for one machine, smallest first.
SMALL = ("femto", "pico", "nano", "micro", "tiny")
#: The variants of the scaling study (Smith et al., "ConvNets Match Vision Transformers at Scale", 2023), smallest
#: first, and the images that a core of TPU v4 trains on in a step at 224 pixels.
STUDY_CORE_BATCHES = {"F0": 64, "F1": 64, "F3": 32, "F3+": 32, "F7": 32, "F7+": 32}


def get(name: str) -> Variant:
    """Returns the variant called `name`; raises ValueError naming those that exist."""
    if name not in VARIANTS:
        raise ValueError(f"Unknown variant {name!r}; expected one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def identifier(name: str) -> str:
    """`name` as files and Keras models spell it: 'f3plus' for 'F3+'."""
    return name.lower().replace("+", "plus")


def stem(variant: Variant) -> tuple[Conv, ...]:
    """The stem's convolutions, from RGB; the first and the last halve the resolution."""
    channels = (3, *variant.stem_widths)
    strides = (2, 1, 1, 2)
    return tuple(
        Conv(f"stem/conv{i}", channels[i], channels[i + 1], kernel=3, stride=stride) for i, stride in enumerate(strides)
    )


def blocks(variant: Variant) -> tuple[Block, ...]:
    """The residual blocks of all stages, in order."""
    plan: list[Block] = []
    channels = variant.stem_widths[-1]
    variance = 1.0
    for stage, (width, depth) in enumerate(zip(variant.widths, variant.depths, strict=True)):
        groups = int(width * BOTTLENECK) // variant.group_width
        inner = groups * variant.group_width  # whole groups: 128 of 192 channels in the first stage of the "+" variants
        for index in range(depth):
            name, is_transition = f"stage{stage}/block{index}", index == 0
            stride = STAGE_STRIDES[stage] if is_transition else 1
            convs = (
                Conv(f"{name}/conv0", channels, inner),
                Conv(f"{name}/conv1", inner, inner, kernel=3, stride=stride, groups=groups),
                Conv(f"{name}/conv1b", inner, inner, kernel=3, groups=groups),
                Conv(f"{name}/conv2", inner, width),
            )
            shortcut = Conv(f"{name}/conv_shortcut", channels, width) if is_transition else None
            beta, depth_fraction = 1 / math.sqrt(variance), len(plan) / sum(variant.depths)
            plan.append(Block(name, stage, convs, width // 2, shortcut, stride, beta, depth_fraction))
            # A transition's shortcut is computed from the scaled input, so that the variance starts again at 1.
            variance = (1.0 if is_transition else variance) + ALPHA**2
            channels = width
    return tuple(plan)


def final_conv(variant: Variant) -> Conv:
    """The 1x1 convolution after the last stage."""
    return Conv("final_conv", variant.widths[-1], 2 * variant.widths[-1])
