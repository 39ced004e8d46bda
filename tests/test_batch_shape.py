import math

import pytest

from pipeline.data.augment import Augmentation
from pipeline.data.batch_shape import BatchShape
from pipeline.data.input import Data
from pipeline.data.mixing import Mixing


def shape(images, augmentation=None, **divisors):
    return Data("nowhere", images, 16, 16, Augmentation(**(augmentation or {}))).batch_shape(**divisors)


def test_a_step_takes_a_batch_of_views():
    assert shape(32).examples == 32
    assert shape(32, {"repeats": 4}).examples == 8


@pytest.mark.parametrize("hosts", [1, 2, 4, 64])
def test_hosts_own_all_lanes_between_them(hosts):
    made = BatchShape(128, hosts=hosts)
    assert [lane for host in range(hosts) for lane in made.host_lanes(host)] == list(range(64))


@pytest.mark.parametrize("images", [1, 6, 30, 64, 96, 4096, 4100])
def test_lanes_depend_on_the_batch_alone_and_divide_it(images):
    lanes = BatchShape(images).lanes
    assert images % lanes == 0 and lanes <= 64 and lanes & (lanes - 1) == 0
    assert images % (2 * lanes) or lanes == 64


@pytest.mark.parametrize(
    ("images", "augmentation", "divisors", "message"),
    [
        (0, {}, {}, "batch is 0 images; expected 1 or more"),
        (30, {"repeats": 4}, {}, "30 images cannot hold 4 views of each example"),
        (30, {"mixing": Mixing()}, {}, "groups of 4 that are mixed with each other.*for example 32"),
        (24, {"mixing": Mixing(), "repeats": 4}, {}, "groups of 16"),
        (7, {"mixing": Mixing(cutmix=False)}, {}, "groups of 2"),
        (2, {"mixing": Mixing()}, {}, "groups of 4"),
        (1, {"mixing": Mixing(cutmix=False)}, {}, "groups of 2"),
        (8, {"mixing": Mixing(), "repeats": 3}, {}, "8 images cannot hold 3 views of each example"),
        (15, {}, {"replicas": 2}, "divided over 2 replicas.*for example 16"),
        (3, {}, {"replicas": 4}, "divided over 4 replicas: use a multiple of 4"),
        (32, {"repeats": 4}, {"replicas": 16}, "each of 16 replicas 2 images.*multiple of 64"),
        (32, {"mixing": Mixing()}, {"replicas": 16}, "each of 16 replicas 2 images.*groups of 4"),
        (6, {}, {"accumulation_steps": 4}, "cannot be taken in 4 parts.*multiple of 4"),
        (24, {}, {"replicas": 4, "accumulation_steps": 4}, "each of 4 replicas 6 images.*in 4 parts.*multiple of 16"),
        (192, {}, {"hosts": 3}, "64 lanes, which 3 hosts cannot share"),
        (6, {}, {"hosts": 4, "replicas": 2}, "2 lanes, which 4 hosts cannot share: use a multiple of 4"),
    ],
)
def test_a_batch_that_does_not_divide_names_one_that_does(images, augmentation, divisors, message):
    with pytest.raises(ValueError, match=message):
        shape(images, augmentation, **divisors)


@pytest.mark.parametrize("hosts", [1, 2, 8])
@pytest.mark.parametrize("replicas", [1, 8, 24])
@pytest.mark.parametrize("accumulation_steps", [1, 3])
@pytest.mark.parametrize("augmentation", [{}, {"repeats": 4}, {"mixing": Mixing(), "repeats": 2}])
def test_what_is_named_as_a_multiple_fits(hosts, replicas, accumulation_steps, augmentation):
    divisors = {"hosts": hosts, "replicas": replicas, "accumulation_steps": accumulation_steps}
    one = shape(math.lcm(hosts, replicas, accumulation_steps) * 64, augmentation).multiple  # without any of them
    group = Augmentation(**augmentation).group
    smallest = math.lcm(replicas * math.lcm(group, accumulation_steps), hosts * Augmentation(**augmentation).repeats)
    made = shape(smallest, augmentation, **divisors)
    assert made.multiple == smallest and smallest % one == 0
    assert made.replica_images % group == made.replica_images % accumulation_steps == made.lanes % hosts == 0
