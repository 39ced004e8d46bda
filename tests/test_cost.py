import pytest
import tensorflow as tf

from pipeline.model import cost, graph_cost, nfnet, variants
from tests import parameter_count

# Parameters in millions, test resolution, multiply-adds in billions; Brock et al. 2021, 1,000 classes.
PUBLISHED = {
    "F0": (71.5, 256, 12.38),
    "F1": (132.6, 320, 35.54),
    "F2": (193.8, 352, 62.59),
    "F3": (254.9, 416, 114.76),
    "F4": (316.1, 512, 215.24),
    "F5": (377.2, 544, 289.76),
    "F6": (438.4, 576, 377.28),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_counts_hold_to_the_printed_precision(variant):
    parameters, resolution, multiply_adds = PUBLISHED[variant]
    assert round(parameter_count.parameters(variant, 1000) / 1e6, 1) == parameters
    assert round(cost.multiply_adds(variant, resolution, 1000) / 1e9, 2) == multiply_adds


@pytest.mark.parametrize("variant", ["nano", "tiny", "F0", "F1+", pytest.param("F7+", marks=pytest.mark.slow)])
def test_parameters_are_those_of_the_built_model(variant):
    with tf.Graph().as_default():
        built = nfnet.create(variant, 37).count_params()
    assert parameter_count.parameters(variant, 37) == built


@pytest.mark.parametrize(("variant", "resolution"), [("nano", 64), ("nano", 75), ("tiny", 50)])
def test_multiply_adds_are_those_of_the_models_graph(variant, resolution):
    counted = graph_cost.multiply_adds(nfnet.create(variant, 37), resolution)
    assert cost.multiply_adds(variant, resolution, 37) == counted


def test_plus_variants_share_depth_and_f7_doubles_f3():
    assert variants.get("F3+").depths == variants.get("F3").depths
    assert variants.get("F7").depths == tuple(2 * depth for depth in variants.get("F3").depths)
    assert variants.get("F7").widths == variants.get("F3").widths


def test_an_unknown_variant_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'F8'.*F7\+"):
        cost.multiply_adds("F8", 224, 10)


def test_inner_widths_are_whole_groups():
    first = variants.blocks(variants.get("F7+"))[0]
    assert [(conv.channels, conv.groups) for conv in first.convs] == [(128, 1), (128, 1), (128, 1), (384, 1)]
    for name in variants.VARIANTS:
        for block in variants.blocks(variants.get(name)):
            assert block.convs[1].channels == block.convs[1].groups * variants.get(name).group_width
