"""What several test modules share."""

import pytest
import tensorflow as tf


def pytest_configure():
    """Gives TensorFlow four logical CPU devices, which it only takes before its first operation."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.Strategy:
    """Two replicas on this machine's CPU.

    On devices of their own: TensorFlow mixes up the collectives of two strategies over the same devices in one
    process, and tests of whole runs make strategies over the first ones.
    """
    return tf.distribute.MirroredStrategy(["/cpu:2", "/cpu:3"])
