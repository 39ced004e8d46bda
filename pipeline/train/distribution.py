"""Which devices train together: TPU pods, several GPUs, several machines, or one device."""

import functools
import json
import os
from collections.abc import Callable, Sequence

import tensorflow as tf

from pipeline import files
from pipeline.errors import cause
from pipeline.train import tpu_machine


class PeerLostError(RuntimeError):
    """Another process of a cluster is gone; this one cannot continue without it."""


class HostLostError(PeerLostError):
    """A host of the TPU slice is gone. TensorFlow's shutdown may wait for it without end: use `os._exit`."""


KINDS = ("auto", "tpu", "mirrored", "multi_worker", "one_device")


def create(kind: str = "auto", tpu: str = "", cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Returns the distribution strategy; call it before any other use of TensorFlow's devices.

    Args:
      kind: 'tpu', 'mirrored' (all GPUs of this machine), 'multi_worker' (processes named by `TF_CONFIG`),
        'one_device', or 'auto': the first of these that this machine has.
      tpu: name or address of the TPU; '' takes the `TPU_NAME` of the environment, or the local chips.
      cpu_replicas: for 'mirrored' without a GPU, how many logical CPU devices to replicate over.

    Raises:
      ValueError: `kind` is unknown, or this machine does not have what it needs.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown strategy {kind!r}; expected one of {', '.join(KINDS)}.")
    if kind == "auto":
        kind = _detect()
    if kind == "tpu":
        return _tpu_strategy(tpu)
    if kind == "multi_worker":
        if not _cluster():
            raise ValueError(
                "Strategy 'multi_worker' needs TF_CONFIG with the cluster's workers and this task's index, and the "
                "environment has none: set it on every worker, or use 'mirrored' or 'one_device'."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if kind == "mirrored":
        return _mirrored_strategy(cpu_replicas)
    return tf.distribute.OneDeviceStrategy("/gpu:0" if tf.config.list_physical_devices("GPU") else "/cpu:0")


def hosts(strategy: tf.distribute.Strategy) -> int:
    """How many hosts read input, which is the number of input pipelines of `strategy`."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return strategy.extended.num_hosts
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return sum(len(addresses) for job, addresses in _cluster().items() if job in ("chief", "worker"))
    return 1


def process() -> int:
    """Number of this process among those of `TF_CONFIG`: 0 is the chief; 0 without `TF_CONFIG`."""
    task = _tf_config().get("task", {})
    before = len(_cluster().get("chief", [])) if task.get("type") == "worker" else 0
    return before + int(task.get("index", 0))


def _tf_config() -> dict:
    return json.loads(os.environ.get("TF_CONFIG", "{}"))


def _cluster() -> dict[str, list[str]]:
    """Job to addresses, as `TF_CONFIG` names them; empty without it."""
    return _tf_config().get("cluster", {})


def is_chief() -> bool:
    """Whether this process writes what is written once: checkpoints, metrics, exports."""
    return process() == 0


def of_all_processes(strategy: tf.distribute.Strategy, value: int) -> set[int]:
    """The values that the processes of `strategy` hold; every process must ask at the same point of the run."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return {value}  # all others have one process, which drives every host
    return set(_gathering(strategy)(tf.constant(value, tf.int64)).numpy().tolist())


@functools.cache
def _gathering(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Gathers a number of each replica; traced once, where `strategy.gather` would be at each call."""

    def gather(value):
        context = tf.distribute.get_replica_context()
        own = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync, value, tf.zeros_like(value))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

    @tf.function(autograph=False)
    def run(value):
        return strategy.experimental_local_results(strategy.run(gather, args=(value,)))[0]

    return run


def update_locally(
    variables: Sequence[tf.Variable], update: Callable[..., object], *values: Sequence[tf.Tensor]
) -> None:
    """Calls `update(variable, value, ...)` for each variable, on each replica's copy; inside `strategy.run`.

    Nothing is communicated. Keras' optimisers update in this way; TensorFlow has no public function for it.
    """

    def update_all(strategy, *values):
        for variable, arguments in zip(variables, zip(*values, strict=True), strict=True):
            strategy.extended.update(variable, update, args=arguments, group=False)

    tf.__internal__.distribute.interim.maybe_merge_call(update_all, tf.distribute.get_strategy(), *values)


def check_reachable(strategy: tf.distribute.Strategy, **folders: str) -> None:
    """Raises a ValueError where a host of a TPU slice could not reach one of `folders`, a local path on this machine.

    The input of a slice is read, and its checkpoints are written, by TensorFlow's servers on the slice's hosts.
    """
    if isinstance(strategy, tf.distribute.TPUStrategy):
        elsewhere = any("/job:localhost/" not in device for device in strategy.extended.worker_devices)
        check_shared(hosts(strategy), elsewhere, **folders)


def check_shared(hosts: int, elsewhere: bool, **folders: str) -> None:
    """Raises a ValueError where one of `folders` is local, and a TPU has several hosts or is not on this machine."""
    for what, folder in folders.items():
        if (hosts > 1 or elsewhere) and not files.is_remote(folder):
            raise ValueError(
                f"{what} is {folder!r}, a folder of this machine, and the TPU has {hosts} hosts, which read and write "
                "it themselves: use a bucket (gs://...), or, if every host mounts the folder at this path, set "
                "Loop.shared_folders = True."
            )


def device(strategy: tf.distribute.Strategy) -> str:
    """Kind of device of the replicas: 'tpu', 'gpu' or 'cpu'."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "tpu"
    return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"


def uses_xla(strategy: tf.distribute.Strategy) -> bool:
    """Whether the step asks for compilation by default: on GPUs.

    On a TPU the whole of `strategy.run` is compiled anyway; on a CPU XLA is 4 to 5 times slower.
    """
    return device(strategy) == "gpu"


def _detect() -> str:
    if _cluster():
        return "multi_worker"
    if os.environ.get("TPU_NAME") or tpu_machine.chips():
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _tpu_strategy(tpu: str) -> tf.distribute.Strategy:
    tpu_machine.check_kernels()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu or os.environ.get("TPU_NAME", "local"))
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        wheel = "" if tpu_machine.has_kernels() else "; this TensorFlow has no TPU kernels, see `make setup-tpu-vm`"
        raise ValueError(
            f"Strategy 'tpu' found no TPU ({cause(error)[:200]}): set TPU_NAME, or use 'auto'{wheel}."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _mirrored_strategy(cpu_replicas: int) -> tf.distribute.Strategy:
    # Private: else the collectives of a process's second strategy, in a notebook or in an evaluation after training,
    # get the keys of the first one's, for which TensorFlow then takes them.
    tf.distribute.MirroredStrategy._collective_key_base += 1000
    if gpus := tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []:
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus])
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_replicas)
    except RuntimeError as error:
        if len(tf.config.list_logical_devices("CPU")) < cpu_replicas:
            raise ValueError(
                f"{cpu_replicas} CPU replicas were asked for after TensorFlow had opened its devices: create the "
                "strategy first."
            ) from error
    return tf.distribute.MirroredStrategy([f"/cpu:{i}" for i in range(cpu_replicas)])
