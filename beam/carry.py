"""Functions that bring this project's code along, so that a Beam worker needs only the installed requirements.

Beam sends a function to its workers as a pickle, which names the module to import it from; workers of a
cluster do not have this repository. A carried function is sent with an archive of the repository's packages:
unpickling it puts the archive on the module path first. In a process that has the modules, nothing changes.
"""

import functools
import io
import os
import sys
import zipfile

from apache_beam.internal import cloudpickle

_PACKAGES = ("beam", "pipeline")
_same_process = False


def stay_in_process(same: bool) -> None:
    """Says that the workers are threads of this process: then nothing need be carried."""
    global _same_process
    _same_process = same


def carried(function):
    """`function`, a module's own, as one that may be used in a Beam transform on any runner.

    Without annotations: Beam would make coders of them that name the module too.
    """
    target = _Target(function)

    def call(*args):
        return target.function(*args)

    call.__name__ = function.__name__
    return call


class _Target:
    """What stands for a function while it travels."""

    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return _unpack, (_archive(), self.function.__module__, self.function.__qualname__, None)


class CarriedObject:
    """Base of an object, made by `Class(*arguments)`, that travels the same way; set `arguments` in `__init__`."""

    arguments = ()

    def __reduce__(self):
        return _unpack, (_archive(), type(self).__module__, type(self).__qualname__, self.arguments)


def _unpack(archive: bytes, module: str, name: str, arguments):
    """Runs on the worker, where nothing of this project can be imported before: imports only what Python has."""
    import atexit
    import importlib
    import os
    import shutil
    import sys
    import tempfile

    if module not in sys.modules and not any("nfnet-pipeline-" in path for path in sys.path):
        folder = tempfile.mkdtemp(prefix="nfnet-pipeline-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, "code.zip")
        with open(path, "wb") as file:
            file.write(archive)
        sys.path.insert(0, path)
        importlib.invalidate_caches()
    found = getattr(importlib.import_module(module), name)
    if arguments is not None:
        return found(*arguments)
    return importlib.import_module("beam.carry")._Target(found)


def _archive() -> bytes:
    return b"" if _same_process else _zip()


@functools.cache
def _zip() -> bytes:
    """A zip file of the project's packages, the same bytes for the same sources."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in _PACKAGES:
            for folder, folders, files in os.walk(os.path.join(root, package)):
                folders.sort()
                for file in sorted(name for name in files if name.endswith(".py")):
                    path = os.path.join(folder, file)
                    with open(path, "rb") as source:
                        archive.writestr(zipfile.ZipInfo(os.path.relpath(path, root)), source.read())
    return buffer.getvalue()


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # `_unpack` itself cannot be imported there
