import json

from pipeline import report


def test_metrics_of_undone_steps_are_dropped_on_resume(tmp_path):
    metrics = report.Metrics(str(tmp_path), resume_step=0)
    for step in (10, 20, 30):
        metrics.add(step, {"loss": step / 10})
    resumed = report.Metrics(str(tmp_path), resume_step=20)
    resumed.add(30, {"loss": 9.0})
    assert report.read_metrics(str(tmp_path)) == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": 9.0},
    ]


def test_a_half_written_last_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert report.read_metrics(str(tmp_path)) == [{"step": 1, "loss": 2.0}]


def test_an_evaluation_adds_a_line_once(tmp_path):
    metrics = report.Metrics(str(tmp_path), resume_step=0)
    metrics.add(10, {"loss": 1.0})
    metrics.add(10, {"validation_loss": 2.0})
    before = (tmp_path / "metrics.jsonl").read_text()
    report.add_evaluation(str(tmp_path), 10, "test", {"loss": 3.0})
    metrics.add(20, {"loss": 0.5})  # the run goes on meanwhile
    after = '{"step": 10, "split": "test", "test_loss": 3.0}\n{"step": 20, "loss": 0.5}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == before + after
    again = {"step": 10, "split": "test", "test_loss": 4.0, "test_top1": 0.5}
    assert report.add_evaluation(str(tmp_path), 10, "test", {"loss": 4.0, "top1": 0.5}) == [again]
    later = {"step": 20, "split": "test", "test_loss": 1.0}
    assert report.add_evaluation(str(tmp_path), 20, "test", {"loss": 1.0}) == [again, later]
    expected = [json.loads(line) for line in before.splitlines()] + [{"step": 20, "loss": 0.5}, again, later]
    assert report.read_metrics(str(tmp_path)) == expected


def test_training_and_an_evaluation_by_hand_do_not_log_a_metric_twice(tmp_path):
    metrics = report.Metrics(str(tmp_path), resume_step=0)
    metrics.add(10, {"validation_loss": 2.0})
    by_hand = {"loss": 2.1, "macro_f1": 0.5}
    first = {"step": 10, "validation_loss": 2.0}
    second = {"step": 10, "split": "validation", "validation_macro_f1": 0.5}
    assert report.add_evaluation(str(tmp_path), 10, "validation", by_hand) == [first, second]
    report.add_evaluation(str(tmp_path), 20, "validation", by_hand)
    resumed = report.Metrics(str(tmp_path), resume_step=20)
    resumed.add(20, {"validation_loss": 1.0})
    third = {"step": 20, "split": "validation", "validation_macro_f1": 0.5}
    assert report.read_metrics(str(tmp_path)) == [first, second, third, {"step": 20, "validation_loss": 1.0}]


def test_an_evaluation_after_a_half_written_line_is_read_back(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    report.add_evaluation(str(tmp_path), 1, "test", {"loss": 3.0})
    assert report.read_metrics(str(tmp_path)) == [
        {"step": 1, "loss": 2.0},
        {"step": 1, "split": "test", "test_loss": 3.0},
    ]


def test_one_that_does_not_write_leaves_the_file_alone(tmp_path):
    metrics = report.Metrics(str(tmp_path), resume_step=0, write=False)
    metrics.add(1, {"loss": 1.0})
    assert metrics.lines == [{"step": 1, "loss": 1.0}]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_summary_reads_back_and_is_none_before(tmp_path):
    assert report.find_summary(str(tmp_path)) is None
    report.write_summary(str(tmp_path), {"step": 3})
    assert report.find_summary(str(tmp_path)) == json.loads((tmp_path / "run.json").read_text()) == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_progress_shows_rate_metrics_and_messages(capfd):
    progress = report.Progress("training", images=100, done=20)
    progress.update(60, {"validation_loss": 1.23456})
    progress.say("epoch 0: exactly once")
    progress.close()
    shown = capfd.readouterr().err
    assert "60.0/100" in shown
    assert "images/s" in shown
    assert "loss 1.235" in shown
    assert "epoch 0: exactly once" in shown


def test_progress_can_be_silent(capfd):
    progress = report.Progress("training", images=100, show=False)
    progress.update(60, {"loss": 1.0})
    progress.say("hidden")
    progress.close()
    assert capfd.readouterr().err == ""
