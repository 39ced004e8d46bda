"""Names of topologies, and the arithmetic of chips, against numbers worked out by hand."""

import pytest

from pipeline.tpu import chips


@pytest.mark.parametrize(
    ("name", "configuration", "replicas", "cores", "hbm"),
    [
        ("v4:2x2x1", None, 8, 1, 15.25),
        ("v4:2x2x1", "megacore", 4, 2, 30.75),
        ("v4:4x4x8", "legacy", 256, 1, 15.25),
        ("v5p:2x2x1", None, 4, 2, 95.73),
        ("v5e:4x4", None, 16, 1, 15.75),
        ("v6e:1x1", None, 1, 1, 31.24),
    ],
)
def test_replicas_of_a_topology(name, configuration, replicas, cores, hbm):
    topology = chips.topology(name, configuration)
    assert (topology.name, topology.replicas, topology.cores_per_replica) == (name, replicas, cores)
    assert topology.hbm_bytes == round(hbm * 2**30)


@pytest.mark.parametrize(
    ("name", "configuration", "message"),
    [
        ("v9:2x2x1", None, "'v9:2x2x1' is no topology: expected one of v4, v5e, v5p, v6e"),
        ("v4-8", None, "such as v4:2x2x1"),
        ("v4:2x2", None, "have 3 axes, such as v4:2x2x1"),
        ("v5e:2x2x1", None, "have 2 axes, such as v5e:2x2"),
        ("v4:2x0x1", None, "is no topology"),
        ("v5e:2x2", "megacore", "expected none: the chip has one core"),
        ("v4:2x2x1", "default", "expected legacy or megacore"),
    ],
)
def test_what_is_no_topology(name, configuration, message):
    with pytest.raises(chips.TopologyError) as error:
        chips.topology(name, configuration)
    assert message in str(error.value)


def test_peak_is_what_the_matrix_units_do_in_a_cycle():
    """A TPU core multiplies four 128 x 128 matrices a cycle (v6e: as many as four of 256 x 256)."""
    for kind, side in (("v4", 128), ("v5e", 128), ("v5p", 128), ("v6e", 256)):
        chip = chips.CHIPS[kind]
        assert chip.peak_flops == pytest.approx(chip.cores * 4 * 2 * side**2 * chip.clock, rel=0.005)


def test_all_reduce_time():
    # A 4 x 4 x 4 torus of v4: six links of 50 GB/s; each chip sends 2 * 63/64 of the bytes.
    torus = chips.topology("v4:4x4x4")
    assert torus.all_reduce_seconds(3e9) == pytest.approx(2 * 63 / 64 * 3e9 / 300e9)
    # 2 x 2 chips are no ring: one link along each of two axes.
    assert chips.topology("v4:2x2x1").all_reduce_seconds(1e9) == pytest.approx(2 * 3 / 4 * 1e9 / 100e9)
    # Axes close in whole cubes alone.
    assert chips.topology("v4:2x4x4").link_bandwidth == pytest.approx(3 * 50e9)
    # A v5e closes its axes at 16 alone.
    assert chips.topology("v5e:8x16").link_bandwidth == pytest.approx(3 * 50e9)
    assert chips.topology("v5e:1x1").all_reduce_seconds(1e9) == 0
    # Both cores of a chip send as one.
    for configuration in ("legacy", "megacore"):
        assert chips.topology("v4:2x2x1", configuration).all_reduce_seconds(1e9) == pytest.approx(0.015)


def test_a_gather_moves_half_of_an_all_reduce():
    slice_of_two = chips.topology("v4:2x1x1")
    assert slice_of_two.gather_seconds(1e9) == pytest.approx(0.5e9 / 50e9)
    torus = chips.topology("v4:4x4x4")
    assert torus.gather_seconds(3e9) == pytest.approx(63 / 64 * 3e9 / 300e9)
    assert torus.gather_seconds(3e9, chips=4) == pytest.approx(3 / 4 * 3e9 / 300e9)  # a quarter is each chip's own
    assert torus.gather_seconds(3e9, chips=1) == torus.all_reduce_seconds(3e9, chips=1) == 0
