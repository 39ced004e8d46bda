"""A real `tf.distribute.TPUStrategy` over made-up devices: what a run traces, and what of it a TPU would run."""

import collections
import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

import tensorflow as tf
from tensorflow.python.tpu import tpu_system_metadata

from pipeline.sharding import collectives

_TPU_CLUSTER = tf.distribute.cluster_resolver.TPUClusterResolver


class _Name(str):
    """A CPU device's name that contains what TPUStrategy asks of a TPU core's."""

    def __contains__(self, part: object) -> bool:
        return part == "device:TPU:" or str.__contains__(self, str(part))


class _Resolver:
    """What `TPUClusterResolver.connect` returns, for `replicas` on `hosts`: the devices `names`, or logical CPUs here.

    The metadata of a TPU have a private class alone.
    """

    tpu_hardware_feature = None

    def __init__(self, replicas: int, hosts: int, names: Sequence[str]):
        device = collections.namedtuple("device", "name")
        names = names or [cpu.name for cpu in tf.config.list_logical_devices("CPU")[:replicas]]
        names = [name if name.startswith("/job") else f"/job:localhost/replica:0/task:0{name}" for name in names]
        self._metadata = tpu_system_metadata.TPUSystemMetadata(
            num_cores=replicas,
            num_hosts=hosts,
            num_of_cores_per_host=replicas // hosts,
            topology=None,
            devices=[device(_Name(name)) for name in names],
        )

    def get_tpu_system_metadata(self) -> tpu_system_metadata.TPUSystemMetadata:
        """What the strategy asks of a resolver."""
        return self._metadata

    def cluster_spec(self) -> None:
        """None: the devices are this process's."""


@contextlib.contextmanager
def instead_of_a_tpu(replicas: int, hosts: int = 1, names: Sequence[str] = ()) -> Iterator[None]:
    """Lets strategy 'tpu' find made-up devices on `hosts`: `names`, or as many logical CPUs of this process."""
    with (
        mock.patch.object(_TPU_CLUSTER, "connect", lambda *args, **kwargs: _Resolver(replicas, hosts, names)),
        # Which a TPU would be asked for.
        mock.patch.object(collectives, "shard_numbers", lambda strategy: list(range(strategy.num_replicas_in_sync))),
    ):
        yield


def on_tpu(graph: tf.Graph) -> list[tf.Operation]:
    """The operations, in `graph` and the functions it calls, that the TPU would run.

    Private: TensorFlow's public view of a graph's functions is `GraphDef`, which has no tensors.
    """
    found, pending, seen = [], [(graph, False)], set()
    while pending:
        here, inside = pending.pop()
        for operation in here.get_operations():
            inside_too = inside or "_tpu_replicate" in operation.node_def.attr
            found += [operation] if inside_too else []
            for attribute in operation.node_def.attr.values():
                names = [attribute.func.name, *(function.name for function in attribute.list.func)]
                for name in filter(None, names):
                    if (name, inside_too) not in seen and (function := graph._functions.get(name)):
                        seen.add((name, inside_too))
                        pending.append((function.graph, inside_too))
    return found


def problems(operations: list[tf.Operation]) -> list[str]:
    """What a TPU cannot run among `operations`: strings, Python, unknown shapes; a line each."""
    found = []
    for operation in operations:
        if any(tensor.dtype == tf.string for tensor in (*operation.inputs, *operation.outputs)):
            found.append(f"{operation.name} holds a string")
        if "Py" in operation.type:
            found.append(f"{operation.name} is Python")
        # A placeholder is of a loop's condition, which takes all of its variables.
        known = all(tensor.shape.is_fully_defined() for tensor in operation.outputs)
        if operation.type != "Placeholder" and not known:
            found.append(f"{operation.name} has an unknown shape")
    return found
