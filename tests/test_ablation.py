"""The table of what the parts are worth: its commands, its arithmetic, and that finished runs are skipped."""

import json
import pathlib

import pytest

from examples import ablation
from pipeline import configure, registry


def load(gin_file, trial):
    """The experiment of a trial, after all checks of its bindings."""
    words = ablation.command(gin_file, {**ablation.SMALL, "SEED": 1, **trial.settings}, pathlib.Path("run"))
    params = [word.removeprefix("--gin_param=") for word in words if word.startswith("--gin_param=")]
    (file,) = [word.removeprefix("--gin_file=") for word in words if word.startswith("--gin_file=")]
    registry.register()
    configure.load([str(ablation.ROOT / file)], params, entry="main", tasks=registry.TASKS)
    return configure.get("Experiment")()


@pytest.fixture(scope="module")
def experiment_of():
    return {
        trial.name: load(gin_file, trial)
        for gin_file, group in (
            ("quickstart_pretrain", ablation.PRETRAINING),
            ("quickstart_finetune", ablation.FINETUNING),
        )
        for trial in group
    }


def summary(loss, top1):
    return {"validation_loss": loss, "validation_top1": top1}


def test_each_comparison_differs_in_its_part_alone(experiment_of):
    assert {name for _, *pair in ablation.COMPARISONS for name in pair} == set(experiment_of)
    sides = [(experiment_of[without], experiment_of[with_it]) for _, without, with_it in ablation.COMPARISONS]
    for without, with_it in sides:
        assert (without.seed, without.precision) == (1, "float32")
        assert (without.data.train_size, without.data.batch) == (with_it.data.train_size, with_it.data.batch)
        # As many images go through the network, whatever each example's number of views.
        views = [each.epochs * each.data.augmentation.repeats for each in (without, with_it)]
        assert views[0] == views[1]
    sam, ema, _, mixing, repeats = sides[2:]
    assert [each.sam is None for each in sam] == [True, False]
    assert [each.ema_decay for each in ema] == [None, 0.99]
    assert [each.data.augmentation.mixing is None for each in mixing] == [True, False]
    assert [each.data.augmentation.repeats for each in repeats] == [1, 4]


def test_agc_is_switched_off_by_its_own_setting():
    for trial, clipped in zip(ablation.PRETRAINING, (True, False, True, False), strict=True):
        made = load("quickstart_pretrain", trial).optimizer(learning_rate=0.1)
        assert (made.get_config()["clipping"] is not None) == clipped


@pytest.mark.parametrize(("name", "last"), [("constant", ablation.RATE), ("plain", 0.0)])
def test_the_rate_stays_or_falls_to_zero(name, last):
    (trial,) = (trial for trial in ablation.FINETUNING if trial.name == name)
    rate = load("quickstart_finetune", trial).schedule(1000, 10.0)  # gin's, which looks values up when it is called
    assert float(rate(999)) == pytest.approx(last, abs=1e-5)
    assert max(float(rate(step)) for step in range(1000)) == pytest.approx(ablation.RATE)


def test_rows_compare_seed_by_seed_and_say_what_diverged(monkeypatch):
    monkeypatch.setattr(ablation, "COMPARISONS", (("AGC", "off", "on"), ("SAM", "on", "sam")))
    results = {
        "off": [summary(3.0, 0.1), None],
        "on": [summary(2.0, 0.25), summary(1.0, 0.75)],
        "sam": [summary(1.5, 0.5), summary(1.25, 0.75)],
    }
    table = ablation.rows(results)
    assert table[0] == {"part": "AGC", "without": None, "with": {"loss": 1.5, "top1": 0.5}}
    assert table[1]["loss_change"] == {"mean": -0.125, "lowest": -0.5, "highest": 0.25}
    lines = ablation.markdown(table).splitlines()
    assert lines[2] == "| AGC | diverged |  | 1.500 | 50.0% |  |"
    assert lines[3] == "| SAM | 1.500 | 50.0% | 1.375 | 62.5% | -0.125 (-0.500 to +0.250) |"


def program(tmp_path, text):
    """A stand-in for `pipeline/main.py`, which also counts its calls."""
    (tmp_path / "pipeline").mkdir()
    count = f"open({str(tmp_path / 'calls')!r}, 'a').write('x')\n"
    (tmp_path / "pipeline/main.py").write_text("import json, os, sys\n" + count + text)
    return tmp_path


def calls(tmp_path):
    return len((tmp_path / "calls").read_text())


def test_a_finished_run_is_not_made_again_unless_its_settings_change(tmp_path, monkeypatch):
    text = """
os.makedirs("run")
json.dump({"validation_loss": 1.0}, open("run/run.json", "w"))
print("run: done")
"""
    monkeypatch.setattr(ablation, "ROOT", program(tmp_path, text))
    assert ablation.train("file", {"A": 1}, pathlib.Path("run")) == {"validation_loss": 1.0}
    assert ablation.train("file", {"A": 1}, pathlib.Path("run")) == {"validation_loss": 1.0}
    assert calls(tmp_path) == 1
    with pytest.raises(SystemExit, match=r"exists(.|\n)*failed with exit code 1"):  # the folder holds another run
        ablation.train("file", {"A": 2}, pathlib.Path("run"))


def test_a_run_that_diverged_is_a_result(tmp_path, monkeypatch):
    text = 'os.makedirs("run")\nprint("DivergedError: not finite at step 3")\nsys.exit(1)\n'
    monkeypatch.setattr(ablation, "ROOT", program(tmp_path, text))
    assert ablation.train("file", {}, pathlib.Path("run")) is None
    assert ablation.train("file", {}, pathlib.Path("run")) is None
    assert calls(tmp_path) == 1
    assert "step 3" in json.loads((tmp_path / "run/finished.json").read_text())["said"]


def test_a_run_that_fails_otherwise_stops_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ROOT", program(tmp_path, 'print("no data")\nsys.exit(1)\n'))
    with pytest.raises(SystemExit, match="no data"):
        ablation.train("file", {}, pathlib.Path("run"))


def test_seeds_are_counted_from_one():
    with pytest.raises(SystemExit):
        ablation.main(["--seeds=0"])
