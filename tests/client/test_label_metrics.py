"""A client's numbers on its labels, by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest
from pydantic import TypeAdapter

from fedrlvr.client.metrics import Calibration, LabelMetrics, Means, Pairs
from fedrlvr.supervision import Clusters, Fate, Supervised, clusters

AAB, ABB, NONE = clusters(["a", "a", "b"]), clusters(["a", "b", "b"]), clusters([None, None, None])
KNOWN = Supervised([0.0, 0.0, 1.0], 1.0, Fate.KNOWN, true=True)
"""Of three responses only the last is right."""
QUERIED = Supervised([1.0, 1.0, 0.0], 1.0, Fate.QUERIED, true=True)
WAITING = Supervised([1.0, 1.0, 0.0], 0.0, Fate.QUERIED, true=False)
TRUSTED = Supervised([1.0, 1.0, 0.0], 0.5, Fate.TRUSTED, true=False)
MASKED = Supervised([0.0, 0.0, 0.0], 0.0, Fate.MASKED, true=False)


def number(value: object) -> float:
    assert isinstance(value, float | int)
    return float(value)


def defined(metrics: LabelMetrics) -> dict[str, object]:
    """The metrics that a reply would carry: finite numbers and lists."""
    return {k: v for k, v in metrics.summary().items() if isinstance(v, list) or math.isfinite(v)}


def one_step(metrics: LabelMetrics, reliable: Sequence[float] | None = None) -> None:
    votes: list[Clusters] = [AAB, AAB, AAB, AAB, NONE]
    metrics.supervised(votes, [KNOWN, QUERIED, WAITING, TRUSTED, MASKED], reliable)


def test_shares_are_of_all_problems_and_come_to_one() -> None:
    metrics = LabelMetrics()
    one_step(metrics)
    metrics.supervised([AAB], [MASKED], None)
    result = metrics.summary()
    assert result["share_query"] == pytest.approx(2 / 6)
    assert result["share_known"] == result["share_reliable"] == pytest.approx(1 / 6)
    assert result["share_masked"] == pytest.approx(2 / 6)
    assert sum(number(v) for k, v in result.items() if k.startswith("share_")) == pytest.approx(1)


def test_labels_are_counted_when_they_are_asked_for_and_when_they_are_trained_on() -> None:
    metrics = LabelMetrics()
    one_step(metrics)
    one_step(metrics)
    metrics.total = 3
    result = metrics.summary()
    assert (result["labels_asked"], result["labels_used"], result["labels_total"]) == (4, 4, 3)
    # Per step the known group has a third right, with a wrong majority, and the queried two thirds, with a right one.
    assert result["verified_reward"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert result["majority_right"] == 0.5


def test_verified_rewards_are_those_of_labels_alone() -> None:
    metrics = LabelMetrics()
    metrics.supervised([AAB, AAB, ABB], [KNOWN, TRUSTED, WAITING], None)
    assert metrics.summary()["verified_reward"] == pytest.approx(1 / 3)
    assert metrics.summary()["majority_right"] == 0


def test_partial_credit_counts_in_the_reward_and_makes_no_majority_right() -> None:
    metrics = LabelMetrics()
    metrics.supervised([AAB], [Supervised([0.5, 0.5, 0.0], 1.0, Fate.KNOWN, true=True)], None)
    assert metrics.summary()["verified_reward"] == pytest.approx(1 / 3)
    assert metrics.summary()["majority_right"] == 0


def test_a_round_without_a_label_has_no_number_of_what_labels_say() -> None:
    metrics = LabelMetrics()
    metrics.supervised([AAB, AAB], [TRUSTED, WAITING], [0.5, 0.5])
    assert defined(metrics) == {
        "labels_asked": 1,
        "labels_used": 0,
        "labels_total": 0,
        "share_query": 0.5,
        "share_known": 0.0,
        "share_reliable": 0.5,
        "share_masked": 0.0,
    }


def test_a_round_of_no_steps_has_counts_alone() -> None:
    assert defined(LabelMetrics()) == {"labels_asked": 0, "labels_used": 0, "labels_total": 0}


def test_a_majority_of_unread_answers_is_never_right() -> None:
    metrics = LabelMetrics()
    metrics.supervised([NONE], [Supervised([1.0, 1.0, 1.0], 1.0, Fate.KNOWN, true=True)], [0.25])
    assert metrics.summary()["majority_right"] == 0
    assert metrics.summary()["p1_right"] == [0.0] * 10


# Calibration.


def test_calibration_counts_by_tenths() -> None:
    calibration = Calibration()
    for reliable, right in [(0.0, False), (0.0625, True), (0.25, True), (0.75, True), (0.9375, False), (1.0, True)]:
        calibration.add(reliable, right)
    assert calibration.lists("p1") == {
        "p1_n": [2, 0, 1, 0, 0, 0, 0, 1, 0, 2],
        "p1_sum": [0.0625, 0, 0.25, 0, 0, 0, 0, 0.75, 0, 1.9375],
        "p1_right": [1, 0, 1, 0, 0, 0, 0, 1, 0, 1],
    }


def test_calibration_of_nothing_is_not_sent() -> None:
    assert Calibration().lists("p1") == {}


def test_calibration_is_of_labelled_problems_and_the_audits_of_all() -> None:
    metrics, reliable = LabelMetrics(), [0.15, 0.25, 0.35, 0.45, 0.55]
    one_step(metrics, reliable)
    result = metrics.summary()
    assert result["p1_n"] == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert result["p1_sum"] == [0, 0.15, 0.25, 0, 0, 0, 0, 0, 0, 0]
    assert result["p1_right"] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert not any(name.startswith("audit") for name in defined(metrics))
    true = [[0, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
    metrics.audit([AAB, AAB, AAB, AAB, NONE], [KNOWN, QUERIED, WAITING, TRUSTED, MASKED], true, reliable, None)
    result = metrics.summary()
    assert result["audit_p1_n"] == [0, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert result["audit_p1_right"] == [0, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert result["p1_n"] == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]


# What only experiments know.


def test_the_audit_knows_the_true_accuracy_and_whom_to_trust() -> None:
    metrics = LabelMetrics()
    one_step(metrics)
    assert "pass@1" not in defined(metrics)
    true = [[0, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]]
    metrics.audit([AAB, AAB, AAB, AAB, NONE], [KNOWN, QUERIED, WAITING, TRUSTED, MASKED], true, None, None)
    metrics.audit([ABB, ABB], [TRUSTED, TRUSTED], [[0.0, 1.0, 1.0], [0.5, 1.0, 1.0]], None, None)
    result = defined(metrics)
    # (1 + 2 + 1 + 1 + 0 + 2 + 2) / 3 of seven; half a reward is not correct
    assert result["pass@1"] == pytest.approx(9 / 21)
    assert result["audit_majority_right"] == pytest.approx(3 / 7)
    assert result["audit_reliable_right"] == pytest.approx(2 / 3)
    assert "audit_gap_correlation" not in result


def test_the_audit_compares_scores_with_true_gaps() -> None:
    """Of three responses with votes of two: right is a gap of 0, wrong with one right odds of 1, wrong else sqrt 3."""
    metrics = LabelMetrics()
    true = [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    scores = [1.0, 2.0, 6.0]
    metrics.audit([AAB] * 3, [MASKED] * 3, true, None, scores)
    gaps = [0.0, math.sqrt(12), math.sqrt(3)]
    # By hand: means 3 and sqrt 3, since sqrt 12 = 2 sqrt 3; deviations -2, -1, 3 and -sqrt 3, sqrt 3, 0.
    assert sum(gaps) / 3 == pytest.approx(math.sqrt(3))
    assert metrics.summary()["audit_gap_correlation"] == pytest.approx(math.sqrt(3) / math.sqrt(14 * 6))


# Correlation.


def correlation(*pairs: tuple[float, float]) -> float:
    result = Pairs()
    for x, y in pairs:
        result.add(x, y)
    return result.correlation


def test_a_correlation_by_hand() -> None:
    # Deviations -1.5, -0.5, 0.5, 1.5 and -1, -2, 1, 2: products 1.5 + 1 + 0.5 + 3, squares 5 and 10.
    assert correlation((1, 2), (2, 1), (3, 4), (4, 5)) == pytest.approx(6 / math.sqrt(50))
    assert correlation((0, 0), (1, 3)) == pytest.approx(1)
    assert correlation((0, 0), (1, -3), (2, -6)) == pytest.approx(-1)


def test_a_correlation_needs_two_numbers_that_vary() -> None:
    assert math.isnan(correlation())
    assert math.isnan(correlation((1, 2)))
    for value in (0.0, 0.1, 4.7, math.sqrt(8)):
        assert math.isnan(correlation(*[(value, y % 7) for y in range(1000)]))
        assert math.isnan(correlation(*[(y % 7, value) for y in range(1000)]))


def test_a_correlation_far_from_zero_keeps_its_digits() -> None:
    pairs = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (4.0, 5.0)]
    assert correlation(*[(x + 1e7, y - 1e7) for x, y in pairs]) == pytest.approx(6 / math.sqrt(50))
    assert correlation(*[(x / 1e9, y / 1e9) for x, y in pairs]) == pytest.approx(6 / math.sqrt(50))


def test_a_correlation_is_never_above_one() -> None:
    rng = random.Random(0)
    for _ in range(200):
        xs = [rng.random() for _ in range(5)]
        assert -1 <= correlation(*[(x, 3 * x) for x in xs]) <= 1


# Means.


def test_means_are_weighted_and_nan_without_weight() -> None:
    means = Means()
    means.add("reward", 3.0, 4)
    means.add("reward", 1.0)
    means.add("age", 0, 0)
    assert means["reward"] == 0.8
    assert math.isnan(means["age"])
    assert math.isnan(means["unknown"])
    assert list(means.values()) == ["reward", "age"]


# Losses, and from message to message.


def test_losses_are_means_over_updates_that_learned() -> None:
    metrics = LabelMetrics()
    metrics.learned({"reliability_loss": 1.0, "correction_loss": 4.0})
    metrics.learned({})
    metrics.learned({"reliability_loss": 2.0, "correction_loss": 0.0})
    result = metrics.summary()
    assert (result["reliability_loss"], result["correction_loss"]) == (1.5, 2.0)


def through_json(metrics: LabelMetrics) -> LabelMetrics:
    """The numbers as a client remembers them in the middle of a round."""
    adapter = TypeAdapter(LabelMetrics)
    return adapter.validate_python(json.loads(json.dumps(adapter.dump_python(metrics, mode="json"))))


def test_the_numbers_go_on_exactly_from_json() -> None:
    def more(metrics: LabelMetrics, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3):
            reliable, scores = [rng.random() for _ in range(5)], [rng.random() * 5 for _ in range(5)]
            one_step(metrics, reliable)
            true = [[float(rng.random() < 0.5) for _ in range(3)] for _ in range(5)]
            metrics.audit(
                [AAB, AAB, AAB, ABB, NONE], [KNOWN, QUERIED, WAITING, TRUSTED, MASKED], true, reliable, scores
            )
            metrics.learned({"reliability_loss": rng.random()})
        metrics.total, metrics.probe_auc = metrics.total + 2, 0.75

    whole, first = LabelMetrics(), LabelMetrics()
    more(whole, 1)
    more(first, 1)
    again = through_json(first)
    assert again == first
    assert type(again.calibration) is type(again.audit_calibration) is Calibration
    more(whole, 2)
    more(again, 2)
    assert again == whole
    assert again.summary() == whole.summary()
    assert all(math.isfinite(value) for value in whole.summary().values() if not isinstance(value, list))


def test_numbers_of_nothing_go_on_too() -> None:
    assert through_json(LabelMetrics()) == LabelMetrics()


def test_two_rounds_do_not_share_their_lists() -> None:
    metrics, other = LabelMetrics(), LabelMetrics()
    metrics.calibration.add(0.5, True)
    metrics.learned({"reliability_loss": 1.0})
    one_step(metrics)
    assert other == LabelMetrics()
    assert other.calibration.n == [0.0] * 10
