"""What Beam jobs share: a runner whose workers have this project's code, quiet logs, and errors in one line."""

import logging
import re
import warnings

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam import worker_code
from pipeline.errors import cause, remote_file_error

# Those of TensorFlow that say what is wrong with a file or its folder.
_OF_FILES = ("FailedPreconditionError", "NotFoundError", "PermissionDeniedError", "ResourceExhaustedError")


def quiet() -> None:
    """Lets Beam, and Pillow of broken metadata, say what matters alone."""
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # logs what it raises too
    logging.getLogger("apache_beam.runners.portability.stager").setLevel(logging.ERROR)  # warns of every wheel
    logging.getLogger().setLevel(logging.WARNING)


def pipeline(parsed: PipelineOptions, folder: str, expected: type[Exception]) -> beam.Pipeline:
    """An empty pipeline on the runner that a flag names, else on Beam's in-memory and multi-processing runner.

    Either way the workers get this project's code.

    Args:
      parsed: the options of the job.
      folder: for the code, a temporary one that must stay until the job ends.
      expected: the error to raise where the runner does not accept the flags.
    """
    if parsed.view_as(GoogleCloudOptions).template_location:
        raise expected(
            "--template_location asks for a template of a job, and this program waits for the job's end, to finish "
            "what it writes: leave it out, and the job is submitted."
        )
    runner = None
    if (parsed.view_as(StandardOptions).runner or "").lower() in ("", "directrunner", "direct"):
        worker_code.share_with_local_processes()
        runner = FnApiRunner()
    else:
        worker_code.send(parsed, folder)
    try:
        return beam.Pipeline(runner=runner, options=parsed)
    except ValueError as error:
        raise expected(str(error).strip()) from error


def run(pipeline: beam.Pipeline, expected: type[Exception]) -> None:
    """Runs a job and waits for it.

    An `expected` error of a worker, or one about a file, is raised as an `expected` one with its message alone.
    """
    try:
        pipeline.run().wait_until_finish()
    except ImportError as error:
        raise expected(f"This runner needs more than is installed: {error}.") from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        for what in (f"{expected.__name__}: ", r"Error: (?=\[Errno)", rf"(?:{'|'.join(_OF_FILES)}): "):
            if message := re.search(rf"{what}(.*?)(?: \[while running|\n|$)", text):
                raise expected(message[1]) from error
        raise


def message(error: Exception) -> str:
    """What an error says; those of TensorFlow are raised again if they are not about a file."""
    if not isinstance(error, tf.errors.OpError):
        return str(error)
    if (problem := remote_file_error(error)) is not None:
        return str(problem)
    if type(error).__name__ not in _OF_FILES:
        raise error
    return cause(error)
