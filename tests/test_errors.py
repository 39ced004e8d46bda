import pytest
import tensorflow as tf

from pipeline.errors import cause

REMOTE = """Graph execution error:

Detected at node SaveV2_1 defined at (most recent call last):
  File "/usr/lib/python3.11/threading.py", line 1002, in _bootstrap

gs://bucket/run/variables_temp; Permission denied
\t [[{{node SaveV2_1}}]]
Additional GRPC error information from remote target /job:worker/replica:0/task:3/device:CPU:0 while calling:
:UNKNOWN:Error received from peer  {grpc_status:7} [Op:__inference_tf_function_save_135]"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("No space left on device", "No space left on device"),
        ("{{function_node __wrapped__Read_1}} Expected 3 dimensions.\nmore [Op:Read]", "Expected 3 dimensions"),
        (REMOTE, "gs://bucket/run/variables_temp; Permission denied (on /job:worker/replica:0/task:3)"),
    ],
)
def test_the_cause_is_one_line_without_graph_nodes(message, expected):
    assert cause(tf.errors.PermissionDeniedError(None, None, message)) == expected


def test_an_error_without_a_message_has_its_name():
    assert cause(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_an_error_of_tensorflow_itself():
    with pytest.raises(tf.errors.OpError) as error:
        tf.io.decode_jpeg(b"no image")
    assert "{{" not in cause(error.value) and "Op:" not in cause(error.value) and "JPEG" in cause(error.value)
