import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from pipeline.train import checkpoint


def state(value=1.0, **more):
    return {
        "model": {"stem/conv0/kernel": tf.Variable(tf.fill([3, 4], value)), "linear/bias": tf.Variable([value])},
        "optimizer": {"iteration": tf.Variable(7, dtype=tf.int64)},
        **more,
    }


def save(directory, step, value=1.0, background=False):
    writer = checkpoint.Writer(str(directory), state(value), background)
    path = writer.save(step, {"seconds": 2.5})
    writer.wait()
    return path


@pytest.mark.parametrize("background", [False, True])
def test_saves_and_restores_every_variable(tmp_path, background):
    save(tmp_path, 5, value=3.0, background=background)
    saved, restored = checkpoint.latest(str(tmp_path)), state(0.0)
    checkpoint.restore(saved, restored)
    assert (saved.step, saved.facts) == (5, {"seconds": 2.5})
    np.testing.assert_array_equal(restored["model"]["stem/conv0/kernel"], np.full((3, 4), 3.0))
    assert checkpoint.variables(saved)["model/stem/conv0/kernel"] == (3, 4)
    assert set(checkpoint.arrays(saved, "model")) == {"stem/conv0/kernel", "linear/bias"}


def test_background_saving_keeps_the_values_of_its_moment(tmp_path):
    variables = state(1.0)
    writer = checkpoint.Writer(str(tmp_path), variables, background=True)
    writer.save(1, {})
    variables["model"]["linear/bias"].assign([99.0])
    writer.wait()
    assert checkpoint.arrays(checkpoint.latest(str(tmp_path)), "model")["linear/bias"] == [1.0]


def test_without_checkpoint_there_is_none(tmp_path):
    assert checkpoint.latest(str(tmp_path / "nothing")) is None
    with pytest.raises(checkpoint.CheckpointError, match="does not exist"):
        checkpoint.find(str(tmp_path / "nothing"))
    with pytest.raises(checkpoint.CheckpointError, match="holds no whole checkpoint"):
        checkpoint.find(str(tmp_path))


def truncate(path):
    data = path / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-3])


def flip(path):
    data = path / "variables.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is damaged: expected"),
        (flip, "is damaged at model/.*hecksum"),
        (lambda path: (path / "variables.index").unlink(), "found nothing"),
        (lambda path: (path / "checkpoint.json").unlink(), r"has no checkpoint\.json"),
        (lambda path: (path / "checkpoint.json").write_text('{"step": 1'), "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_never_loaded(tmp_path, damage, message):
    save(tmp_path, 1, value=1.0)
    newest = pathlib.Path(save(tmp_path, 2, value=2.0))
    damage(newest)
    assert checkpoint.latest(str(tmp_path)).step == 1
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.open_checkpoint(str(newest))


def test_facts_are_read_without_the_variables(tmp_path):
    save(tmp_path, 1)
    newest = pathlib.Path(save(tmp_path, 2))
    flip(newest)
    assert checkpoint.find(str(tmp_path)).step == 1
    assert checkpoint.find(str(tmp_path), verify=False).step == 2
    assert checkpoint.find(str(newest), verify=False).step == 2
    truncate(newest)
    assert checkpoint.find(str(tmp_path), verify=False).step == 1


def test_saving_over_a_half_written_checkpoint_replaces_it(tmp_path):
    half = tmp_path / "step-00000003"
    half.mkdir()
    (half / "variables.data-00000-of-00001").write_bytes(b"half")
    save(tmp_path, 3)
    assert checkpoint.latest(str(tmp_path)).step == 3


def test_restoring_names_what_is_missing_unused_and_of_another_shape(tmp_path):
    save(tmp_path, 1)
    other = state()
    other["model"] = {"linear/bias": tf.Variable([1.0, 2.0]), "stem/conv9/kernel": tf.Variable(1.0)}
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.restore(checkpoint.latest(str(tmp_path)), other)
    text = str(error.value)
    assert "model/stem/conv9/kernel () is not in the checkpoint" in text
    assert "model/stem/conv0/kernel (3, 4) has no place in the model" in text
    assert "model/linear/bias has shape (1,) in the checkpoint and (2,) in the model" in text


def steps(directory):
    return [int(os.path.basename(path)[5:]) for path in checkpoint.checkpoints(str(directory))]


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 10, 11):
        save(tmp_path, step)
    checkpoint.prune(str(tmp_path), keep=2, keep_every_hours=0)
    assert steps(tmp_path) == [10, 11]


def test_prune_keeps_old_ones_by_age(tmp_path):
    for step in range(1, 8):
        commit = pathlib.Path(save(tmp_path, step)) / "checkpoint.json"
        content = json.loads(commit.read_text())
        commit.write_text(json.dumps({**content, "time": step * 1800.0}))
    checkpoint.prune(str(tmp_path), keep=1, keep_every_hours=1)
    assert steps(tmp_path) == [1, 3, 5, 7]


def test_a_copy_is_a_whole_checkpoint(tmp_path):
    path = save(tmp_path / "a", 4, value=5.0)
    copied = checkpoint.copy(path, str(tmp_path / "b"))
    assert checkpoint.open_checkpoint(copied).step == 4
    assert checkpoint.arrays(checkpoint.find(str(tmp_path / "b")), "model")["linear/bias"] == [5.0]


def test_find_takes_a_run_or_one_of_its_checkpoints(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 6)
    assert checkpoint.find(str(tmp_path / "run")).step == 6
    assert checkpoint.find(path).step == 6


@pytest.mark.parametrize("background", [False, True])
def test_a_failed_write_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch, background):
    save(tmp_path, 1)
    writer = checkpoint.Writer(str(tmp_path), state(2.0), background)

    def full(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(checkpoint, "_file_facts", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"No space left on device.*run the same command again"):
        writer.save(2, {})
        writer.wait()
    monkeypatch.undo()
    assert steps(tmp_path) == [1]
    assert checkpoint.latest(str(tmp_path)).step == 1
