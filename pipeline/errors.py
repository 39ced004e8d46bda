"""What TensorFlow's errors say."""

import re

_NOISE = re.compile(
    r"Graph execution error:|Detected at node .*|^\s*File \".*|\[\[.*\]\]|\{\{function_node .*?\}\}|\[Op:.*\]",
    re.MULTILINE,
)
_REMOTE = re.compile(r"Additional GRPC error information from remote target (/job:\w+/replica:\d+/task:\d+)")


def cause(error: Exception) -> str:
    """What went wrong, without graph nodes, traces and reports of remote calls; names the host where it is another."""
    text, *remote = _REMOTE.split(str(error), maxsplit=1)
    lines = [line.strip() for line in _NOISE.sub("", text).splitlines() if line.strip()]
    what = lines[0].rstrip(".:") if lines else type(error).__name__
    return f"{what} (on {remote[0]})" if remote else what


class RemoteFileError(RuntimeError):
    """A file in an object store could not be read or written."""


def remote_file_error(error: Exception) -> RemoteFileError | None:
    """What TensorFlow's `error` says about a file in an object store; None where it is about something else."""
    place = re.search(r"\b[a-z0-9]+://[^\s,;:'\"]+", re.sub("https?://|grpc://", "", str(error)))
    if place is None:
        return None
    scheme = place[0].partition("://")[0]
    if f"File system scheme '{scheme}' not implemented" in str(error):
        return RemoteFileError(
            f"TensorFlow has no file system for {scheme}://, so {place[0]} cannot be read or written. Records, runs "
            f"and exports are kept on disks or in gs://; {scheme}:// can hold images, for `beam/build_tfrecords.py "
            "--input`, where Beam reads it."
        )
    return RemoteFileError(
        f"{place[0]} cannot be read or written ({type(error).__name__}: {cause(error)}). Check its name, and that this "
        "machine's account has access to the bucket (`gcloud auth application-default login` gives it yours). A run "
        "continues from its last checkpoint: start the same command again."
    )
