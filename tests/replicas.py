"""Runs a traced program on several replicas: devices of JAX's CPU, in a process of their own.

    XLA_FLAGS=--xla_force_host_platform_device_count=N python -m tests.replicas FOLDER

TensorFlow has no collectives of XLA on a CPU.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(hlo: bytes, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs a serialised HLO module on as many replicas as the arguments have rows: [replicas, ...].

    Returns:
      Its results, [replicas, ...] each.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "program.hlo").write_bytes(hlo)
        np.savez(folder / "arguments.npz", *arguments)
        devices = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={len(arguments[0])}",
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
        }
        command = [sys.executable, "-m", "tests.replicas", name]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **devices}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(folder / "results.npz") as results:
            return [results[key] for key in results.files]


def _main(folder: pathlib.Path) -> None:
    import jax
    from jax.extend import backend

    from pipeline.tpu import compiler

    devices = jax.devices()
    program = compiler.compile_arguments((folder / "program.hlo").read_bytes(), devices)
    executable = backend.get_backend().compile_and_load(*program)
    # Each device's own values: JAX calls an array of them replicated and does not compare them.
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), "r"), jax.sharding.PartitionSpec())
    with np.load(folder / "arguments.npz") as stored:
        inputs = [
            jax.make_array_from_single_device_arrays(
                rows.shape[1:],
                sharding,
                [jax.device_put(row, device) for row, device in zip(rows, devices, strict=True)],
            )
            for rows in (stored[key] for key in stored.files)
        ]
    outputs = executable.execute_sharded(inputs).disassemble_into_single_device_arrays()
    np.savez(folder / "results.npz", *(np.stack([np.asarray(value) for value in each]) for each in outputs))


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]))
