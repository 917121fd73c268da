"""Supervision by true labels, and by the majority in their place."""

from __future__ import annotations

import pytest
from fakeledger import FakeLedger, step

from fedrlvr.supervision import Fate, MajorityVotes, Supervised, TrueLabels


def test_the_true_rewards_count_in_full_and_nothing_is_bought() -> None:
    ledger = FakeLedger({"p": "b", "q": "a"}, known=["p", "q"])
    assert TrueLabels().supervise(step({"p": "aab", "q": "a-c"}), ledger) == [
        Supervised([0.0, 0.0, 1.0], multiplier=1.0, fate=Fate.KNOWN, true=True),
        Supervised([1.0, 0.0, 0.0], multiplier=1.0, fate=Fate.KNOWN, true=True),
    ]
    assert ledger.asked == []


def test_true_labels_need_neither_votes_nor_hidden_states() -> None:
    method = TrueLabels()
    assert not method.reads_votes
    assert not method.reads_states
    assert method.learn() == {}


def test_the_groups_themselves_are_left_as_they_are() -> None:
    for method in (TrueLabels(), MajorityVotes()):
        drawn = step({"p": "aab"})
        method.supervise(drawn, FakeLedger(known=["p"]))
        assert [response.reward for response in drawn.groups[0].responses] == [None, None, None]
        assert drawn.groups[0].multiplier == 1.0


def test_a_problem_without_a_label_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="problem q has no label"):
        TrueLabels().supervise(step({"p": "aab", "q": "aab"}), FakeLedger(known=["p"]))


def test_the_majority_is_trained_on_as_voted_and_no_label_is_looked_at() -> None:
    ledger = FakeLedger("b", known=["p", "q", "r"])
    assert MajorityVotes().supervise(step({"p": "aab", "q": "-bca", "r": "--"}), ledger) == [
        Supervised([1.0, 1.0, 0.0], multiplier=1.0, fate=Fate.TRUSTED, true=False),
        Supervised([0.0, 1.0, 0.0, 0.0], multiplier=1.0, fate=Fate.TRUSTED, true=False),
        Supervised([0.0, 0.0], multiplier=1.0, fate=Fate.TRUSTED, true=False),
    ]
    assert ledger.asked == []


def test_the_majority_needs_votes_and_learns_nothing() -> None:
    method = MajorityVotes()
    assert method.reads_votes
    assert not method.reads_states
    assert method.learn() == {}
