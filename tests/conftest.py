"""What several test modules share."""

import gc
import os

import pytest

# As the programs do, before TensorFlow is imported:
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# What takes a worker of pytest-xdist longest, and so begins first: at the end it would keep the others waiting.
LONGEST = (
    "test_end_to_end",
    "test_resume",
    "test_tpu_strategy",
    "test_public_accuracy",
    "test_tpu_layers",
    "test_reader",
    "test_cpu_layers",
    "test_auto_settings",
)


def pytest_collection_modifyitems(items):
    """Puts `LONGEST` first; `make test` keeps the order (`--no-loadscope-reorder`)."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_configure(config):
    """Gives TensorFlow four logical CPU devices, which it only takes before its first operation."""
    if "PYTEST_XDIST_WORKER" not in os.environ and config.getoption("numprocesses", None):
        return  # this process runs no test; its workers start once it is configured, and would wait for TensorFlow
    # One core for each process, for the programs that tests start, too; and the same bits with one process or several.
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    gc.disable()  # until all tests are imported: a fifth of the time that takes
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    if config.getoption("markexpr") == "not slow":
        # Optimizing each new graph takes a tenth of the quick tests. Programs that they start have all of TensorFlow,
        # and so has `make test-all`.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def pytest_collection_finish():
    """Lets garbage collection pass over what stays until the end: modules and tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def two_replicas():
    """Two replicas on this machine's CPU.

    Without collectives, which TensorFlow keeps by device for the whole process: after another strategy over the same
    devices (tests of whole runs make some), those of this one would be taken for the other's.
    """
    import tensorflow as tf

    devices, reduction = ["/cpu:0", "/cpu:1"], tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)
