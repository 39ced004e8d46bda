"""This project's code for the workers of a job, as a wheel that Beam installs there (`--extra_package`).

A wheel, because Beam's workers install it as it is: a source package they would have to build, with tools that pip
fetches from the network. It depends on nothing: the workers' image has what `requirements.txt` lists.
"""

import os
import pathlib
import zipfile

from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_PACKAGES = ("beam", "pipeline")
_NAME, _VERSION = "nfnet_pipeline", "0.1.0"


def send(options: PipelineOptions, folder: str) -> None:
    """Adds this project's code to a job's options, as a wheel in `folder`, which must stay until it is submitted."""
    setup = options.view_as(SetupOptions)
    setup.extra_packages = [*(setup.extra_packages or ()), wheel(folder)]


def share_with_local_processes() -> None:
    """Lets worker processes that this one starts import the code from where it is."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(_ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, paths)])


def wheel(folder: str) -> str:
    """Writes a wheel of the project's Python files into `folder`; returns its path."""
    path = os.path.join(folder, f"{_NAME}-{_VERSION}-py3-none-any.whl")
    metadata = f"{_NAME}-{_VERSION}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in _PACKAGES:
            for file in sorted((_ROOT / package).rglob("*.py")):
                archive.write(file, file.relative_to(_ROOT))
        archive.writestr(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: {_VERSION}\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")  # pip fills it in while it installs
    return path
