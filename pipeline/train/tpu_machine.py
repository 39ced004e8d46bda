"""Whether this machine has TPU chips, and a TensorFlow that can use them."""

import glob
import os
import sys

from pipeline.errors import cause

PCI_DEVICES = "/sys/bus/pci/devices"
_VENDOR = "0x1ae0"  # Google's
_GENERATIONS = {"0x0027": "v2 or v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e"}


def chips(pci_devices: str = PCI_DEVICES) -> list[str]:
    """The generation of each TPU chip on this machine's PCI bus; none where it has no chip."""
    folders = sorted(glob.glob(os.path.join(glob.escape(pci_devices), "*")))
    identities = [(_read(folder, "vendor"), _read(folder, "device")) for folder in folders]
    return [_GENERATIONS[device] for vendor, device in identities if vendor == _VENDOR and device in _GENERATIONS]


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read().strip()
    except OSError:
        return ""


def import_tensorflow() -> None:
    """Imports TensorFlow; where it was built for TPUs and finds none, ends the program and says so.

    An entry point calls it before it imports anything that imports TensorFlow.
    """
    try:
        import tensorflow  # noqa: F401
    except Exception as error:  # its class belongs to the module whose import failed
        if "TPU" not in str(error):
            raise
        sys.exit(
            f"{sys.prefix} holds TensorFlow for TPU VMs, and it found no TPU here ({cause(error)}). On a TPU VM, end "
            "other programs that hold the chips. Elsewhere, start with .venv/bin/python, which `make setup` makes."
        )


def has_kernels() -> bool:
    """Whether the installed TensorFlow has a TPU's operations; the plain wheel has none.

    There is no public way to ask: this reads the registry of kernels.
    """
    from tensorflow.python.framework import kernels

    return bool(kernels.get_registered_kernels_for_op("TPUCompile").kernel)


def check_kernels() -> None:
    """Raises a ValueError where this machine has TPU chips that the installed TensorFlow cannot use."""
    if (found := chips()) and not has_kernels():
        raise ValueError(
            f"This machine has {len(found)} TPU chips ({found[0]}), but the installed TensorFlow has no TPU kernels: "
            "it is the plain wheel. Run `make setup-tpu-vm`, and start with .venv-tpu-vm/bin/python; to train on the "
            "CPU all the same, set Loop.strategy = 'one_device'."
        )
