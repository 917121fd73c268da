"""The area under the ROC curve of judgements made before learning."""

from __future__ import annotations

import math

import pytest
import torch

from fedrlvr.supervision.held_out import LEAST, WINDOW, HeldOut, auc


def test_areas_by_hand() -> None:
    assert auc([0.9, 0.4, 0.6, 0.1], [True, True, False, False]) == 0.75  # of four pairs, 0.4 is below 0.6
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert auc([0.9, 0.8], [False, True]) == 0
    assert auc([0.9, 0.8], [True, True]) is auc([], []) is None


def test_there_is_an_area_from_a_few_labels_of_both_kinds_on() -> None:
    held_out = HeldOut()
    for number in range(LEAST):
        assert held_out.auc is None
        held_out.add(number / 10, True)
    assert held_out.auc is None  # all majorities were right
    held_out.add(0.25, False)
    assert held_out.auc == 5 / 8  # below 0.3 to 0.7 and above 0, 0.1 and 0.2


def test_only_the_newest_count() -> None:
    held_out = HeldOut()
    for _ in range(WINDOW):
        held_out.add(0.0, True)
        held_out.add(1.0, False)
    assert held_out.auc == 0
    for _ in range(WINDOW // 2):
        held_out.add(1.0, True)
        held_out.add(0.0, False)
    assert held_out.auc == 1


def test_the_judgements_go_on_exactly() -> None:
    first, second = HeldOut(), HeldOut()
    for number in range(10):
        first.add(math.sqrt(number / 10), number % 3 == 0)
    second.load(first.tensor())
    assert torch.equal(second.tensor(), first.tensor())
    assert second.auc == first.auc
    with pytest.raises(ValueError, match="held-out"):
        second.load(torch.zeros(3, 2))
    assert second.auc == first.auc
