"""Metrics of an evaluation against plain loops over the examples."""

import collections

import numpy as np
import pytest

from pipeline.evaluation import guessing, metrics


@pytest.fixture(params=[(500, 7), (200, 40), (1, 1), (30, 2)], ids=str)
def examples(request):
    """Labels, predictions, confidences, and the number of classes, of which the last one may never occur."""
    count, classes = request.param
    rng = np.random.default_rng(count)
    labels = rng.integers(0, max(1, classes - 1), count).astype(np.int32)
    predicted = np.where(rng.random(count) < 0.6, labels, rng.integers(0, classes, count)).astype(np.int32)
    return labels, predicted, rng.random(count).astype(np.float32), classes


def test_the_confusion_matrix_counts_every_example_once(examples):
    labels, predicted, _, _ = examples
    expected = collections.Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    cells = metrics.confusion(labels, predicted)
    assert dict(zip(zip(*(a.tolist() for a in cells[:2]), strict=True), cells.counts.tolist(), strict=True)) == expected
    mistakes = metrics.confusion(labels, predicted).mistakes()
    assert mistakes.counts.sum() == np.sum(labels != predicted)
    assert sorted(mistakes.counts.tolist(), reverse=True) == mistakes.counts.tolist()


def test_precision_recall_and_f1_of_each_class(examples):
    labels, predicted, _, classes = examples
    counts = metrics.class_counts(labels, predicted, classes)
    scores = []
    for each in range(classes):
        right = sum(a == each == b for a, b in zip(labels, predicted, strict=True))
        said, true = sum(b == each for b in predicted), sum(a == each for a in labels)
        assert (counts.labelled[each], counts.predicted[each], counts.correct[each]) == (true, said, right)
        np.testing.assert_equal(counts.precision[each], right / said if said else np.nan)
        np.testing.assert_equal(counts.recall[each], right / true if true else np.nan)
        if said or true:
            precision, recall = (right / said if said else 0), (right / true if true else 0)
            scores.append(2 * precision * recall / (precision + recall) if right else 0)
            assert counts.f1[each] == pytest.approx(scores[-1])
    assert counts.macro_f1 == pytest.approx(np.mean(scores))


def test_the_calibration_error_is_that_of_the_bins(examples):
    labels, predicted, confidence, _ = examples
    correct = labels == predicted
    error = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [i for i, each in enumerate(confidence) if low < each <= high]
        if inside:
            error += abs(sum(correct[i] for i in inside) - sum(float(confidence[i]) for i in inside)) / len(labels)
    assert metrics.calibration(confidence, correct).error == pytest.approx(error, rel=1e-6)


def test_confidences_of_0_and_1_are_in_the_outer_bins():
    calibration = metrics.calibration(np.array([0.0, 1.0, 1.0]), np.array([False, True, True]))
    assert calibration.examples.tolist() == [1, *[0] * 13, 2]
    assert calibration.error == 0


def test_no_answer_that_is_the_same_for_all_images_beats_the_class_frequencies():
    counts, rng = np.array([5, 0, 30, 8]), np.random.default_rng(0)
    labels = np.repeat(np.arange(4), counts)
    for answer in [counts / counts.sum(), *rng.dirichlet(np.ones(4), 200)]:
        loss = np.mean([-np.log(answer[label]) for label in labels])
        assert loss > guessing.frequency_loss(counts) - 1e-12
    assert guessing.frequency_loss([7, 7, 7]) == pytest.approx(np.log(3))


def test_a_model_that_is_not_better_than_guessing_is_warned_of():
    assert guessing.warning(1.0, [7, 7, 7]) == "" == guessing.warning(0.0, [9, 0])
    assert "loss, 1.2, is not below 1.099" in guessing.warning(1.2, [7, 7, 7])
    assert "the same 2,100 images" in guessing.warning(float("nan"), [700, 700, 700])
    for loss, top1, lines in ((1.0, 0.5, 1), (1.0, 0.3, 1), (1.2, 0.5, 1), (1.2, 0.3, 2)):
        found = guessing.notes({"loss": loss, "top1": top1}, [7, 7, 7])
        assert len(found) == lines and "loss of 1.099 and a top-1 of 33.33%" in found[0]
