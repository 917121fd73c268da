"""TraPO: trajectories by hand, who is trusted, and what is remembered."""

from __future__ import annotations

import json
import math

import pytest
from fakeledger import FakeLedger, step

from fedrlvr.supervision import Fate, Spending, Supervised
from fedrlvr.supervision.trapo import Trapo, correlation, similarity


def trapo(*, budget: float = 0.0, trusted: float = 0.0, vote_free_steps: int = 0, min_similarity: float = 0.9) -> Trapo:
    return Trapo(
        spending=Spending(budget),
        trusted=trusted,
        vote_free_steps=vote_free_steps,
        min_similarity=min_similarity,
    )


def test_correlations_by_hand() -> None:
    assert correlation([0.0, 0.5, 1.0], [0.2, 0.4, 0.6]) == pytest.approx(1)
    assert correlation([0.0, 0.5, 1.0], [0.6, 0.4, 0.2]) == pytest.approx(-1)
    assert correlation([0.0, 1.0, 0.0, 1.0], [0.0, 1.0]) == pytest.approx(1)  # over the draws that both have
    assert correlation([0.0, 0.0, 1.0], [0.0, 1.0, 1.0]) == pytest.approx(0.5)  # offsets -1 -1 2 and -2 1 1, in thirds
    assert correlation([0.5, 0.5], [0.0, 1.0]) == 0  # what does not vary is like nothing


def test_a_similarity_is_the_mean_over_the_references_that_can_be_compared() -> None:
    references = [[0.0, 1.0], [1.0, 0.0, 0.0], [0.5]]
    assert similarity([0.2, 0.4], references) == pytest.approx(0)
    assert similarity([0.2, 0.4], references[:1]) == pytest.approx(1)
    assert similarity([0.2], references) is similarity([0.2, 0.4], []) is None


ROUND_1 = {"known": "aabb", "alike": "abcd", "unlike": "aaaa"}
ROUND_2 = {"known": "bbbb", "alike": "aabc", "unlike": "aabb"}
"""Where b is right: the rates of `known` rise from 1/2 to 1, of `alike` from 1/4 to 1/2, of `unlike` they fall."""


def test_a_vote_is_trusted_where_its_rates_have_developed_as_those_of_labels() -> None:
    method, ledger = trapo(), FakeLedger("b", known=["known"])
    first = method.supervise(step(ROUND_1), ledger)
    assert [verdict.fate for verdict in first] == [Fate.KNOWN, Fate.MASKED, Fate.MASKED]  # nothing to compare yet
    second = method.supervise(step(ROUND_2, number=1), ledger)
    assert second[0] == Supervised([1.0] * 4, 1.0, Fate.KNOWN, true=True)
    assert second[1] == Supervised([1.0, 1.0, 0.0, 0.0], 1.0, Fate.TRUSTED, true=False)
    assert second[2] == Supervised([1.0, 1.0, 0.0, 0.0], 0.0, Fate.MASKED, true=False)
    assert method.trajectories == {"known": [0.5, 1.0], "alike": [0.25, 0.5], "unlike": [1.0, 0.5]}
    assert method.references == {"known", "alike"}


def test_what_was_trusted_is_a_reference_until_it_is_not() -> None:
    method, ledger = trapo(), FakeLedger("b", known=["known"])
    for number, drawn in enumerate((ROUND_1, ROUND_2, {"alike": "abcd"})):
        method.supervise(step(drawn, number=number), ledger)
    # 1/4, 1/2, 1/4 with 1/2, 1 is compared over two draws: still alike. A longer label tells them apart.
    assert method.references == {"known", "alike"}
    method.supervise(step({"known": "bbbb"}, number=3), ledger)
    verdict = method.supervise(step({"alike": "aaaa"}, number=4), ledger)[0]
    # Over three draws: 1/4, 1/2, 1/4 against 1/2, 1, 1 correlate by 1/2, and nothing else is a reference.
    assert verdict.fate is Fate.MASKED
    assert method.references == {"known"}


def test_the_share_is_trusted_however_small_the_similarity_is() -> None:
    method, ledger = trapo(trusted=0.4), FakeLedger("b", known=["known"])
    for number, drawn in enumerate((ROUND_1, ROUND_2)):
        result = method.supervise(step(drawn, number=number), ledger)
    assert [verdict.fate for verdict in result] == [Fate.KNOWN, Fate.TRUSTED, Fate.TRUSTED]  # ceil(0.4 x 3) = 2


def test_no_vote_is_trusted_early_and_trajectories_grow_all_the_same() -> None:
    method, ledger = trapo(trusted=1.0, vote_free_steps=2), FakeLedger("b", known=["known"])
    fates = [method.supervise(step(ROUND_1, number=number), ledger)[1].fate for number in range(3)]
    assert fates == [Fate.MASKED, Fate.MASKED, Fate.TRUSTED]
    assert method.trajectories["alike"] == [0.25] * 3


def test_labels_are_asked_for_by_chance_and_count_from_then_on() -> None:
    method, ledger = trapo(budget=0.3), FakeLedger("b")
    result = method.supervise(step(ROUND_1, seed=1), ledger)
    (asked,) = ledger.names
    at = list(ROUND_1).index(asked)
    assert result[at].true
    assert method.references == {asked}
    assert ledger.asked[0].score is None
    rate = ROUND_1[asked].count("b") / 4
    assert method.trajectories[asked] == [rate]


def test_it_goes_on_exactly_from_its_state() -> None:
    method, ledger = trapo(), FakeLedger("b", known=["known"])
    for number, drawn in enumerate((ROUND_1, ROUND_2)):
        method.supervise(step(drawn, number=number), ledger)
    tensors, plain = method.state()
    other = trapo()
    other.load(tensors, json.loads(json.dumps(plain)))
    assert (other.trajectories, other.references) == (method.trajectories, method.references)
    thirds = trapo()
    thirds.supervise(step({"p": "aab"}), FakeLedger())
    again = trapo()
    again.load(*thirds.state())
    assert again.trajectories == {"p": [2 / 3]}
    assert math.isclose(again.trajectories["p"][0], 2 / 3, rel_tol=0, abs_tol=0)


@pytest.mark.parametrize("spoil", ["names", "tensors", "draws"])
def test_a_state_that_is_not_whole_is_refused(spoil: str) -> None:
    method, other = trapo(), trapo()
    method.supervise(step(ROUND_1), FakeLedger())
    tensors, plain = method.state()
    if spoil == "names":
        plain = {"problems": plain["problems"][1:]}
    elif spoil == "tensors":
        del tensors["references"]
    else:
        tensors["draws"] = tensors["draws"] + 1
    with pytest.raises(ValueError, match="pass rates"):
        other.load(tensors, plain)
    assert other.trajectories == {}
