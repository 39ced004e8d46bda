"""A real `tf.distribute.TPUStrategy` over made-up devices: all but execution works without a TPU."""

import collections
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.tpu import tpu_system_metadata


class _Name(str):
    """A CPU device's name that contains what TPUStrategy asks of a TPU core's."""

    def __contains__(self, part: str) -> bool:
        return part == "device:TPU:" or str.__contains__(self, part)


class Resolver:
    """What `TPUClusterResolver.connect` returns, for `replicas` on `hosts`: the CPUs `names`, or logical ones."""

    tpu_hardware_feature = None

    def __init__(self, replicas: int, hosts: int = 1, names: Sequence[str] = ()):
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

    def get_tpu_system_metadata(self):
        """What the strategy asks of a resolver."""
        return self._metadata

    def cluster_spec(self):
        """None: the devices are this process's."""


def replaces_tpu(monkeypatch, replicas: int = 4, hosts: int = 1) -> None:
    """Makes strategy 'tpu' find made-up devices, for one test."""
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver
    monkeypatch.setattr(resolver, "connect", lambda *args, **kwargs: Resolver(replicas, hosts))


def on_tpu(graph: tf.Graph) -> list[tf.Operation]:
    """The operations, in `graph` and the functions it calls, that the TPU would run."""
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
