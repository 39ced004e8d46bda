"""XLA's TPU compiler, which is part of libtpu, on a machine without a TPU: from HLO to an optimised program.

It runs in a process of its own: the compiler ends its process on some errors, and its memory is free afterwards.
"""

import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.tpu import hlo

TESTED = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.51"}
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class CompilerError(RuntimeError):
    """There is no compiler, or it failed for another reason than memory."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of device memory that a program takes: arguments, results apart from them, temporaries and code."""

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    code_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes + self.code_bytes


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A compiled program.

    Attributes:
      seconds: that compiling took.
      versions: of jax, jaxlib and libtpu.
      flops, bytes_accessed: of one run, bytes of HBM traffic.
      hlo: text of the optimised module.
    """

    seconds: float
    versions: dict[str, str]
    memory: Memory
    flops: float
    bytes_accessed: float
    hlo: str


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's answer to a program that does not fit into memory.

    Attributes:
      seconds, versions: as of a `Compilation`.
      message: the compiler's.
      used_bytes, limit_bytes: memory that the program would take, and that there is; None where it did not say.
    """

    seconds: float
    versions: dict[str, str]
    message: str
    used_bytes: int | None
    limit_bytes: int | None


def versions() -> dict[str, str]:
    """Versions of the compiler's packages, read without importing them.

    Raises:
      CompilerError: one is missing; says how to install it.
    """
    installed = {}
    for package in TESTED:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise CompilerError(
                f"Compiling for a TPU takes the package {package}, which is not installed: "
                "pip install -r requirements-tpu.txt"
            ) from None
    return installed


def untested(installed: dict[str, str]) -> str:
    """What differs from the versions that this was tested with; '' if nothing."""
    return ", ".join(
        f"{name} {version} (tested: {TESTED[name]})" for name, version in installed.items() if version != TESTED[name]
    )


def end_with_its_processes() -> None:
    """Makes SIGTERM end this process and those that trace and compile for it."""

    def end(number: int, _: types.FrameType | None) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        sys.exit(128 + number)  # which ends a compiler that is waited for

    signal.signal(signal.SIGTERM, end)


def compile_hlo(hlo: bytes, topology: str, configuration: str, replicas: int = 1) -> Compilation | Refusal:
    """Compiles a serialised HLO module for the first `replicas` devices of a topology, each of which runs it.

    Args:
      hlo: as `tf.function(...).experimental_get_compiler_ir(...)("hlo_serialized")` gives it.
      topology: `v4:2x2x1`, for example.
      configuration: 'legacy', 'megacore' or 'default'.
      replicas: as many as the program's collectives name.

    Raises:
      CompilerError: the compiler is missing, or failed; says how.
    """
    installed = versions()
    with tempfile.TemporaryDirectory(prefix="tpu_check_") as folder:
        with open(os.path.join(folder, "program.hlo"), "wb") as file:
            file.write(hlo)
        command = [sys.executable, "-m", "pipeline.tpu.compiler", folder, topology, configuration, str(replicas)]
        quiet = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        start = time.monotonic()
        done = subprocess.run(command, cwd=_ROOT, env={**os.environ, **quiet}, capture_output=True, text=True)
        seconds = time.monotonic() - start
        try:
            with open(os.path.join(folder, "result.json")) as file:
                result = json.load(file)
        except FileNotFoundError:
            if done.returncode == -signal.SIGKILL:
                raise CompilerError(
                    f"The compiler was killed after {seconds:.0f} s, very likely for lack of memory: F7+ takes 13 GB. "
                    "Close other programs, or check on a machine with more memory."
                ) from None
            raise CompilerError(
                f"The compiler ended with exit code {done.returncode} and no result for {topology}: "
                + (done.stderr.strip()[-2000:] or "it wrote no message.")
            ) from None
        if error := result.get("error"):
            return _refused(error, topology, seconds, installed)
        with open(os.path.join(folder, "optimised.hlo")) as file:
            text = file.read()
    return Compilation(seconds, installed, memory=Memory(**result.pop("memory")), hlo=text, **result)


def _refused(error: str, topology: str, seconds: float, installed: dict[str, str]) -> Refusal:
    """The answer to a compiler's error: a program that does not fit is an answer, anything else is not."""
    no_memory = "RESOURCE_EXHAUSTED" in error or "Ran out of memory" in error
    on_chip = re.search("vmem|smem|cmem", error, re.IGNORECASE) and not re.search("hbm", error, re.IGNORECASE)
    if not no_memory or on_chip:
        raise CompilerError(f"The compiler refused the program for {topology}: {error[:2000]}")
    return Refusal(seconds, installed, error, *used_and_limit(error))


def used_and_limit(error: str) -> tuple[int | None, int | None]:
    """Bytes needed and present, from the message of a compiler out of memory; None where it does not say."""
    forms = (
        r"required for [^()]*\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    )
    match = next(filter(None, (re.search(form, error) for form in forms)), None)
    if not match:
        return None, None
    used, used_unit, limit, limit_unit = match.groups()
    return round(float(used) * _UNITS[used_unit]), round(float(limit) * _UNITS[limit_unit])


def _main(folder: str, topology: str, configuration: str, replicas: str) -> None:
    """The compiler's own process: program.hlo in `folder` to result.json and optimised.hlo."""
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    with open(os.path.join(folder, "program.hlo"), "rb") as file:
        module = file.read()
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, chip_config_name=configuration)
        devices = described.devices[: int(replicas)]
        executable = devices[0].client.compile(*compile_arguments(module, devices))
    except JaxRuntimeError as error:
        _write(folder, {"error": str(error)})
        return
    text, sizes = executable.hlo_modules()[0].to_string(), executable.get_compiled_memory_stats()
    with open(os.path.join(folder, "optimised.hlo"), "w") as file:
        file.write(text)
    memory = Memory(
        sizes.argument_size_in_bytes,
        max(sizes.output_size_in_bytes - sizes.alias_size_in_bytes, 0),
        sizes.temp_size_in_bytes,
        sizes.generated_code_size_in_bytes,
    )
    flops, traffic = _costs(executable, text)
    _write(folder, {"flops": flops, "bytes_accessed": traffic, "memory": dataclasses.asdict(memory)})


def _costs(executable: Any, text: str) -> tuple[float, float]:
    """FLOPs and bytes of HBM traffic of a run.

    The compiler counts one turn of each loop. How much of the whole that is comes from JAX's own count, for which a
    loop's body can stand alone: exact for FLOPs, an estimate for traffic, which it counts without a TPU's layouts.
    """
    costs = executable.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    names, loops = ("flops", "bytes accessed"), [loop for loop in hlo.loops(text) if loop[1] > 1]
    more = dict.fromkeys(names, 0.0)
    if loops:
        whole = _count(text)
        for body, turns in loops:
            once = _count(hlo.with_entry(text, body))
            for name in names:
                more[name] += (turns - 1) * costs[name] * once[name] / whole[name]
    flops, traffic = (costs[name] + more[name] for name in names)
    return flops, traffic


def _count(text: str) -> dict[str, float]:
    """JAX's count of the FLOPs and the traffic of an HLO module.

    Private: publicly, only what JAX traced itself can be counted, and this program is TensorFlow's.
    """
    import jax
    from jax._src.lib import _jax, xla_client

    module = xla_client.hlo.hlo_module_from_text(text)
    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)


def compile_arguments(hlo: bytes, devices: Sequence[Any]) -> tuple:
    """What a JAX client's `compile` and `compile_and_load` take: a serialised HLO module as MLIR, devices and options.

    Each device runs a replica of the program.

    Private: publicly, JAX compiles only what it traced itself, and this program is TensorFlow's.
    """
    from jax._src import compiler
    from jax._src.lib import xla_client

    assignment = np.array([[device.id] for device in devices])
    options = compiler.get_compile_options(num_replicas=len(devices), num_partitions=1, device_assignment=assignment)
    return _module_without_copies(hlo), xla_client.DeviceList(tuple(devices)), options


def _module_without_copies(hlo: bytes) -> Any:
    """The HLO module as MLIR, without `mhlo.copy`, which the compiler does not take: a copy is its operand.

    Private: JAX converts HLO to MLIR in no public function.
    """
    from jax._src.lib import _jax, xla_client
    from jax.extend.mlir import ir
    from jax.interpreters import mlir

    text = _jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(hlo))
    with mlir.make_ir_context() as context:
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(text)
    copies = []

    def collect(operation):
        if operation.name == "mhlo.copy":
            copies.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(collect)
    for copy in copies:
        copy.results[0].replace_all_uses_with(copy.operands[0])
        copy.erase()
    return module


def _write(folder: str, result: dict) -> None:
    with open(os.path.join(folder, "result.json"), "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    _main(*sys.argv[1:])
