import os
import pathlib
import subprocess

import pytest

from pipeline.train import tpu_machine
from pipeline.train.run_config import Loop

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def pci(tmp_path):
    """Writes a PCI bus with devices of (vendor, device)."""

    def write(*devices):
        for number, (vendor, device) in enumerate(devices):
            folder = tmp_path / f"0000:00:{number:02x}.0"
            folder.mkdir()
            (folder / "vendor").write_text(f"{vendor}\n")
            (folder / "device").write_text(f"{device}\n")
        return str(tmp_path)

    return write


def test_chips_are_those_of_the_pci_bus_and_nothing_else(pci):
    network, disk = ("0x1ae0", "0x0042"), ("0x1af4", "0x005e")
    bus = pci(("0x1ae0", "0x005e"), network, disk, ("0x1ae0", "0x005e"))
    assert tpu_machine.chips(bus) == ["v4", "v4"]


def test_a_machine_without_a_bus_has_no_chips(tmp_path):
    assert tpu_machine.chips(str(tmp_path / "nothing")) == []


@pytest.mark.parametrize("strategy", ["auto", "tpu"])
def test_chips_without_kernels_are_refused_with_what_to_install(monkeypatch, strategy):
    monkeypatch.setattr(tpu_machine, "chips", lambda: ["v5e"] * 4)
    monkeypatch.setattr(tpu_machine, "has_kernels", lambda: False)
    with pytest.raises(ValueError, match=r"4 TPU chips \(v5e\).*no TPU kernels.*make setup-tpu-vm"):
        Loop(strategy=strategy).create_strategy()


def test_the_plain_wheel_has_no_kernels_for_a_tpu():
    assert not tpu_machine.has_kernels()


@pytest.mark.slow
def test_the_environment_of_a_tpu_vm_has_the_kernels(tmp_path):
    """Installs it as a user does; every other package is the one of requirements.txt."""
    environment = tmp_path / "env"
    subprocess.run(["make", "setup-tpu-vm", f"VENV={environment}"], cwd=ROOT, check=True)
    python = f"{environment}-tpu-vm/bin/python"
    # Elsewhere than in Google's cloud, TensorFlow would ask its metadata server for minutes.
    one_host = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v4-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    # TensorFlow sets this, for the processes that it starts too, where the compiler's libtpu is installed.
    inherited = {name: value for name, value in os.environ.items() if name != "TPU_LIBRARY_PATH"}
    settings = {"cwd": ROOT, "env": {**inherited, **one_host, "TPU_WORKER_ID": "0"}, "timeout": 300}
    script = "from pipeline.train import tpu_machine; print(tpu_machine.has_kernels())"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, **settings)
    assert done.stdout == "True\n", done.stderr
    done = subprocess.run(
        [python, "pipeline/main.py", "--gin_file=gin/f0_jft.gin"], capture_output=True, text=True, **settings
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "holds TensorFlow for TPU VMs, and it found no TPU here" in done.stderr
