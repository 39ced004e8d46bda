"""TensorFlow's errors in the words of this project."""

import pytest
import tensorflow as tf

from pipeline import registry
from pipeline.data.manifest import ManifestError
from pipeline.errors import RemoteFileError
from pipeline.tpu import made_up_devices
from pipeline.train import distribution
from pipeline.train.controller import explained_errors
from pipeline.train.distribution import HostLostError
from pipeline.train.memory import OutOfMemoryError

ONE_DEVICE = tf.distribute.OneDeviceStrategy("/cpu:0")
RESET = (
    "recvmsg:Connection reset by peer\n"
    "Additional GRPC error information from remote target /job:worker/replica:0/task:1/device:CPU:0 while calling /tf:"
)


@pytest.mark.parametrize(
    ("error", "explained", "message"),
    [
        (
            tf.errors.NotFoundError(None, None, "/data/demo-train.tfrecord-00001-of-00003; No such file or directory"),
            ManifestError,
            r"^/data/demo-train\.tfrecord-00001-of-00003 cannot be opened by the host .* every host needs all shards",
        ),
        (
            tf.errors.NotFoundError(
                None, None, "HTTP code 404 reading gs://b/demo-train.tfrecord-00001-of-00003.index"
            ),
            ManifestError,
            r"^gs://b/demo-train\.tfrecord-00001-of-00003\.index cannot be opened",
        ),
        (
            tf.errors.PermissionDeniedError(None, None, "HTTP response code 403\n\t when reading gs://b/run/metrics"),
            RemoteFileError,
            r"^gs://b/run/metrics cannot be read or written .*403.* account has access .* same command",
        ),
        (
            tf.errors.AbortedError(None, None, "All 10 retry attempts failed\n\t when uploading gs://b/run/x"),
            RemoteFileError,
            r"^gs://b/run/x cannot .*All 10 retry attempts failed",
        ),
        (
            tf.errors.UnimplementedError(None, None, "Fused conv implementation does not support grouped convolutions"),
            ValueError,
            r"without oneDNN .*\(Fused conv.*\).*TF_ENABLE_ONEDNN_OPTS=1 before",
        ),
        (
            tf.errors.InvalidArgumentError(None, None, "Gradients for grouped convolutions are not supported on CPU."),
            ValueError,
            r"without oneDNN .*\(Gradients for.*\).*TF_ENABLE_ONEDNN_OPTS=1 before",
        ),
    ],
)
def test_what_is_missing_is_named(error, explained, message):
    with pytest.raises(explained, match=message), explained_errors(ONE_DEVICE):
        raise error


@pytest.mark.parametrize("file", ["gin/finetune_own.gin", "gin/f0_jft.gin"])
def test_records_where_tensorflow_has_no_file_system(file, tmp_path):
    """Settings that are chosen for the data read it before the run begins."""
    with pytest.raises(RemoteFileError, match=r"no file system for s3://, so s3://bucket/set.* on disks or in gs://"):
        registry.run_configured([file], ['DATA_DIR="s3://bucket/set"'], str(tmp_path / "run"))


@pytest.mark.parametrize("kind", [tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError])
def test_a_lost_host_of_a_tpu_slice_is_named(kind):
    with made_up_devices.instead_of_a_tpu(4, hosts=2):
        strategy = distribution.create("tpu")
    with (
        pytest.raises(
            HostLostError, match=r"host .* is gone .*/job:worker/replica:0/task:1\).* same command .* checkpoint"
        ),
        explained_errors(strategy),
    ):
        raise kind(None, None, RESET)


def _reported():
    raise tf.errors.ResourceExhaustedError(
        None, None, "{{function_node __wrapped__Fill}} OOM when allocating tensor with shape[8] and type float"
    )


@pytest.mark.parametrize(
    "allocate",
    [_reported, pytest.param(lambda: tf.zeros([1 << 45]), id="seen", marks=pytest.mark.slow)],  # tried for 10 s
)
def test_a_device_without_enough_memory_is_told_from_a_full_disk(allocate):
    message = r"too little memory \(OOM when allocating.*Data\.batch.*accumulation_steps.*smaller variant"
    with pytest.raises(OutOfMemoryError, match=message), explained_errors(ONE_DEVICE):
        allocate()
    with pytest.raises(tf.errors.ResourceExhaustedError, match="space"), explained_errors(ONE_DEVICE):
        raise tf.errors.ResourceExhaustedError(None, None, "/run/metrics.jsonl; No space left on device")


def test_other_errors_stay_what_they_are():
    with made_up_devices.instead_of_a_tpu(4, hosts=2):
        strategy = distribution.create("tpu")
    with pytest.raises(tf.errors.InvalidArgumentError, match="shapes"), explained_errors(strategy):
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")
    with pytest.raises(tf.errors.UnavailableError), explained_errors(ONE_DEVICE):
        raise tf.errors.UnavailableError(None, None, RESET)
