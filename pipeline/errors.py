"""Errors of TensorFlow in one line."""

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
