import dataclasses
import functools
import math
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy

from pipeline.data.input import Data
from pipeline.model import nfnet, public_files, weights
from pipeline.train import checkpoint, experiment, optimizer, public_weights, run_config, schedule
from pipeline.train.evaluate import evaluate
from pipeline.train.train import train
from pipeline.train.trained_model import load_model
from tests import programs, record_sets

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SUFFIXES = {"deepmind": "pkl", "timm": "safetensors"}


@pytest.fixture(scope="module")
def model():
    model = nfnet.create("nano", 7)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


@pytest.fixture(params=SUFFIXES)
def public_file(request, tmp_path, model):
    """(source, path of a file of the model's weights)"""
    path = str(tmp_path / f"weights.{SUFFIXES[request.param]}")
    public_files.write(path, weights.extract(model, request.param), request.param)
    return request.param, path


def test_imported_weights_are_the_files_and_come_back_from_the_checkpoint(public_file, model, tmp_path):
    source, path = public_file
    public_weights.save(public_weights.from_file(path, source, "nano"), str(tmp_path / "run"), path)
    again = public_weights.from_checkpoint(str(tmp_path / "run"), "nano")
    for ours, theirs in zip(model.variables, again.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    facts = checkpoint.find(str(tmp_path / "run")).facts
    assert facts["variant"] == "nano"
    assert facts["imported_from"] == os.path.basename(path)


def test_the_files_are_what_their_projects_read(public_file, model):
    source, path = public_file
    if source == "timm":
        arrays = safetensors.numpy.load_file(path)
        assert arrays["stem.conv1.weight"].shape == (8, 3, 3, 3)
        assert arrays["stages.0.0.conv1.gain"].shape == (16, 1, 1, 1)
    else:
        with open(path, "rb") as file:
            tree = pickle.load(file)
        assert tree["NFNet/~/stem_conv0"]["w"].shape == (3, 3, 3, 8)
        assert tree["NFNet/~/nf_block"]["skip_gain"].shape == ()


def test_a_file_of_another_variant_is_named(public_file):
    source, path = public_file
    with pytest.raises(
        ValueError, match=r"is not tiny; it looks like nano\.\n.*\n.*\n  of another shape: .* and \d+ more"
    ):
        public_weights.from_file(path, source, "tiny")


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.999])
def test_a_truncated_file_is_refused(public_file, keep):
    source, path = public_file
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(public_files.WeightsFileError, match=r"is not a whole .*: download it again"):
        public_weights.from_file(path, source, "nano")


def test_bytes_changed_at_random_are_read_or_refused_but_never_crash(public_file):
    source, path = public_file
    with open(path, "rb") as file:
        content = file.read()
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 4000), 5):
            damaged[place] = rng.integers(256)
        with open(path, "wb") as file:
            file.write(damaged)
        try:
            public_files.read(path, source)
        except public_files.WeightsFileError as error:
            assert path in str(error)


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


class _Codec:
    def __reduce__(self):
        import codecs

        return codecs.encode, ("x", "rot13")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_Evil(), r"names (posix|nt)\.mkdir"),
        ({"NFNet/~/linear": {"b": _Evil()}}, r"names (posix|nt)\.mkdir"),
        ({"a": {"w": np.array([_Evil()], dtype=object)}}, "values of type object|mkdir"),
        ({"a": {"w": np.ma.array([1.0])}}, r"names numpy\.ma"),
        ({"a": {"w": np.array(["text"])}}, "values of type <U4"),
        ({"a": {"w": _Codec()}}, "codec 'rot13'"),
        ({"a": {"w": eval}}, r"names (builtins|__builtin__)\.eval"),
        ({"a": {"w": "text"}}, "holds a str at a/w"),
        ({"a": {"w": np.arange(3)}}, "holds a/w as int64"),
        ([1, 2], "holds a int; expected a tree"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_of_anything_but_arrays_is_refused_unexecuted(tmp_path, monkeypatch, content, message, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(public_files.WeightsFileError, match=message):
        public_files.read("evil.pkl", "deepmind")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_and_the_npz_are_read(tmp_path, protocol):
    tree = {
        "m": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.float32(2), "h": np.ones((2, 2), np.float16).T}
    }
    (tmp_path / "tree.pkl").write_bytes(pickle.dumps((tree, {}), protocol=protocol))
    np.savez(tmp_path / "tree.npz", **{f"m/{name}": array for name, array in tree["m"].items()})
    for name in ("tree.pkl", "tree.npz"):
        arrays = public_files.read(str(tmp_path / name), "deepmind")
        assert set(arrays) == {"m/w", "m/s", "m/h"}
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, tree["m"][key[2:]])


def test_a_runs_folder_is_not_overwritten(tmp_path, model):
    state = {"model": weights.named(model)}
    checkpoint.Writer(str(tmp_path / "checkpoints"), state).save(7, {})
    with pytest.raises(checkpoint.CheckpointError, match="holds a run"):
        public_weights.save(model, str(tmp_path), "x.pkl")


def test_a_checkpoint_of_another_variant_is_not_exported(tmp_path, model):
    public_weights.save(model, str(tmp_path), "x.pkl")
    with pytest.raises(checkpoint.CheckpointError, match=r"\(variant nano\) does not fit this model"):
        public_weights.from_checkpoint(str(tmp_path), "tiny")


def test_the_command_imports_and_exports(tmp_path, model):
    path, run, out = (str(tmp_path / name) for name in ("weights.pkl", "run", "weights.safetensors"))
    public_files.write(path, weights.extract(model, "deepmind"), "deepmind")
    flags = ["--source=deepmind", f"--file={path}", "--variant=nano", f"--output_dir={run}", f"--export_timm={out}"]
    done = programs.run("pipeline/import_weights.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "INITIAL_CHECKPOINT" in done.stdout
    assert checkpoint.find(run).facts["variant"] == "nano"
    expected, found = weights.extract(model, "timm"), public_files.read(out, "timm")
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-7)


def test_the_command_says_what_is_wrong(tmp_path):
    done = programs.run(
        "pipeline/import_weights.py",
        "--source=timm",
        f"--file={tmp_path}/none",
        "--variant=F0",
        f"--output_dir={tmp_path}/run",
    )
    assert done.returncode == 1
    assert f"There is no file {tmp_path}/none." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_imported_weights_evaluate_fine_tune_and_serve_like_a_run(tmp_path):
    record_sets.make(tmp_path / "records", examples=48, validation=12, classes=5)
    model = nfnet.create("nano", 5)
    path = str(tmp_path / "weights.pkl")
    public_files.write(path, weights.extract(model, "deepmind"), "deepmind")
    public_weights.save(public_weights.from_file(path, "deepmind", "nano"), str(tmp_path / "imported"), path)

    setup = experiment.Experiment(
        model=functools.partial(nfnet.create, "nano"),
        data=Data(str(tmp_path / "records"), batch=12, train_size=32, eval_size=32),
        optimizer=optimizer.SGD,
        schedule=functools.partial(schedule.constant, peak=1e-6),
        epochs=1,
        ema_decay=0.9,
        frozen=("stem/*",),
    )
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    whole = run_config.RunContext(str(tmp_path / "imported"), "", {}, "")
    served = load_model(checkpoint.find(whole.model_dir), setup.create_model)
    np.testing.assert_allclose(served(images), model(images), rtol=1e-5, atol=1e-6)
    assert evaluate(whole, setup)["loss"] == pytest.approx(math.log(5), rel=0.5)

    tuned = dataclasses.replace(setup, initial_checkpoint=str(tmp_path / "imported"))
    summary = train(run_config.RunContext(str(tmp_path / "tuned"), "", {}, ""), tuned)
    assert summary["variant"] == "nano"
    arrays = checkpoint.arrays(checkpoint.find(str(tmp_path / "tuned")), "model")
    for name, variable in weights.named(model).items():
        if not name.startswith("linear/"):
            np.testing.assert_allclose(arrays[name], variable, rtol=1e-2, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(arrays["stem/conv0/kernel"], weights.named(model)["stem/conv0/kernel"])
