"""CARE's supervision, with probes that say what a test wants, and once with real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import pytest
import torch
from fakeledger import FakeLedger, step, voted

from fedrlvr.supervision import Fate, Spending, Step, Supervised
from fedrlvr.supervision.care import Care, Judged
from fedrlvr.supervision.features import Features, Labelled, features
from fedrlvr.supervision.judge import Judge, Judgement

EIGHT = {f"p{n}": "aab" for n in range(8)}
P1 = [0.875, 0.125, 0.75, 0.5, 0.5, 0.25, 0.375, 0.0]
S = [3.0, 0.5, 0.25, 2.0, 2.0, 1.0, 4.0, 0.0]


class FakeJudge:
    """Says P1 and S as they are set, and keeps what it is taught."""

    def __init__(self, reliable: Sequence[float] = P1, scores: Sequence[float] = S) -> None:
        self.reliable, self.scores = reliable, scores
        self.taught: list[Labelled | None] = []
        self.gradients: list[bool] = []
        self.held_out: list[tuple[float, bool]] = []
        self.auc: float | None = None

    def judge(self, seen: Features) -> Judgement:
        assert len(seen) == len(self.reliable)
        return Judgement(torch.tensor(self.reliable), torch.tensor(self.scores), torch.zeros(len(seen), 1))

    def hold_out(self, reliable: float, right: bool) -> None:
        self.held_out.append((reliable, right))

    def learn(self, new: Labelled | None) -> dict[str, float]:
        self.taught.append(new)
        self.gradients.append(torch.is_grad_enabled())
        return {"reliability_loss": 0.5}


def care(judge: FakeJudge, *, budget: float = 0.25, trusted: float = 0.25, vote_free_steps: int = 20) -> Care:
    return Care(judge, spending=Spending(budget), trusted=trusted, vote_free_steps=vote_free_steps)  # type: ignore[arg-type]


def seen(letters: Sequence[str], hidden: int = 2) -> Features:
    """Hidden states that count up from the first problem's, so that each problem is told from the others."""
    group = len(letters[0])
    prompts = torch.arange(len(letters) * hidden, dtype=torch.float32).reshape(-1, hidden)
    responses = torch.arange(len(letters) * group * hidden, dtype=torch.float32).reshape(-1, group, hidden)
    lengths = [[1] * group for _ in letters]
    return features(prompts, responses, [voted(letter) for letter in letters], lengths, 4)


def of(drawn: Mapping[str, str], number: int, hidden: int = 2) -> Step:
    return step(drawn, number=number, features=seen(list(drawn.values()), hidden))


def multipliers(groups: Sequence[Supervised]) -> list[float]:
    return [group.multiplier for group in groups]


# Who is asked about and who is trusted.


def test_care_asks_about_the_largest_scores_and_trusts_the_most_reliable() -> None:
    ledger = FakeLedger("b")
    result = care(FakeJudge()).supervise(of(EIGHT, 20), ledger)
    assert ledger.names == ["p6", "p3"]  # p0 has a larger score than p3 and is trusted
    fates = [Fate.MASKED] * 8
    fates[0] = fates[2] = Fate.TRUSTED
    fates[3] = fates[6] = Fate.QUERIED
    assert [group.fate for group in result] == fates
    assert multipliers(result) == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert [group.true for group in result] == [fate is Fate.QUERIED for fate in fates]
    for group in result:
        assert group.rewards == ([0.0, 0.0, 1.0] if group.true else [1.0, 1.0, 0.0])


def test_the_query_says_what_the_probes_said() -> None:
    ledger = FakeLedger("b")
    care(FakeJudge()).supervise(of(EIGHT, 33), ledger)
    queries = [(query.rank, query.step, query.score, query.reliable) for query in ledger.asked]
    assert queries == [(1, 33, 4.0, 0.375), (2, 33, 2.0, 0.5)]
    assert ledger.asked[0].responses == ("0: a", "2: b")


@pytest.mark.parametrize(
    ("number", "vote_free_steps", "trusts"), [(0, 20, 0), (19, 20, 0), (20, 20, 2), (2, 3, 0), (0, 0, 2)]
)
def test_no_vote_is_trusted_in_the_vote_free_steps(number: int, vote_free_steps: int, trusts: int) -> None:
    ledger = FakeLedger("b")
    result = care(FakeJudge(), vote_free_steps=vote_free_steps).supervise(of(EIGHT, number), ledger)
    assert sum(group.fate is Fate.TRUSTED for group in result) == trusts
    assert ledger.names == (["p6", "p3"] if trusts else ["p6", "p0"])


def test_quotas_are_of_the_whole_step_and_what_has_a_label_is_not_ranked() -> None:
    ledger = FakeLedger("b", known=["p0", "p6"])
    result = care(FakeJudge(), budget=0.375).supervise(of(EIGHT, 20), ledger)
    # Three are asked about and two trusted (p2, and p3 before p4 of the same P1), of all eight.
    assert ledger.names == ["p4", "p5", "p1"]
    assert [place for place, group in enumerate(result) if group.fate is Fate.TRUSTED] == [2, 3]
    assert multipliers(result) == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert result[0] == result[6] == Supervised([0.0, 0.0, 1.0], 1.0, Fate.KNOWN, true=True)


def test_the_share_to_trust_is_of_the_whole_step_too() -> None:
    ledger = FakeLedger("b", known=["p0", "p6"])
    result = care(FakeJudge(), budget=0.0, trusted=0.5).supervise(of(EIGHT, 20), ledger)
    # Four of the eight, though six are left: half of those would be three.
    assert [place for place, group in enumerate(result) if group.fate is Fate.TRUSTED] == [2, 3, 4, 5]


def test_what_is_awaited_is_masked_and_neither_asked_again_nor_trusted() -> None:
    judge, ledger = FakeJudge(), FakeLedger("b", at_once=False)
    method = care(judge)
    first = method.supervise(of(EIGHT, 20), ledger)
    assert [first[place].fate for place in (6, 3)] == [Fate.QUERIED] * 2
    assert [first[place].multiplier for place in (6, 3)] == [0.0] * 2
    judge.reliable = [0.0] * 6 + [1.0, 0.0]
    second = method.supervise(of(EIGHT, 21), ledger)
    assert second[6] == second[3] == Supervised([1.0, 1.0, 0.0], 0.0, Fate.MASKED, true=False)
    assert [place for place, group in enumerate(second) if group.fate is Fate.TRUSTED] == [0, 1]  # of P1 0, but not p6
    assert ledger.names == ["p6", "p3", "p4", "p5"]
    ledger.arrive("p6")
    assert method.supervise(of(EIGHT, 22), ledger)[6] == Supervised([0.0, 0.0, 1.0], 1.0, Fate.KNOWN, true=True)


def test_a_budget_that_is_spent_leaves_trust_alone() -> None:
    ledger = FakeLedger("b", most=1)
    result = care(FakeJudge()).supervise(of(EIGHT, 20), ledger)
    assert ledger.names == ["p6"]
    assert multipliers(result) == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert multipliers(care(FakeJudge()).supervise(of(EIGHT, 20), ledger)) == [1.0, 0, 1.0, 0, 0, 0, 1.0, 0]
    assert ledger.names == ["p6"]


@pytest.mark.parametrize(("trusted", "who"), [(0.0, []), (0.5, [0, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4, 5, 6, 7])])
def test_the_share_to_trust_is_a_setting(trusted: float, who: list[int]) -> None:
    result = care(FakeJudge(), budget=0.0, trusted=trusted).supervise(of(EIGHT, 20), FakeLedger("b"))
    assert [place for place, group in enumerate(result) if group.fate is Fate.TRUSTED] == who
    assert multipliers(result) == [float(place in who) for place in range(8)]


def test_a_vote_below_the_bar_is_not_trusted_and_may_be_asked_about() -> None:
    ledger = FakeLedger("b")
    method = Care(FakeJudge(), spending=Spending(0.25), trusted=0.5, vote_free_steps=20, min_reliability=0.75)  # type: ignore[arg-type]
    result = method.supervise(of(EIGHT, 20), ledger)
    assert [place for place, group in enumerate(result) if group.fate is Fate.TRUSTED] == [0, 2]  # p3 and p4 have 0.5
    assert ledger.names == ["p6", "p3"]


def test_a_group_in_which_nothing_could_be_read_has_no_votes_to_trust() -> None:
    drawn = {"p0": "---", "p1": "aab"}
    judge = FakeJudge([0.9, 0.1], [0.0, 2.0])
    result = care(judge, budget=0.5, trusted=0.5).supervise(of(drawn, 20), FakeLedger("b"))
    assert result[0] == Supervised([0.0, 0.0, 0.0], 1.0, Fate.TRUSTED, true=False)
    assert result[1] == Supervised([0.0, 0.0, 1.0], 1.0, Fate.QUERIED, true=True)


def test_what_the_probes_said_of_every_problem_can_be_read() -> None:
    method = care(FakeJudge())
    assert method.judged == Judged([], [])
    method.supervise(of(EIGHT, 0), FakeLedger("b", known=["p1"]))
    assert method.judged == Judged(P1, S)


# What the probes learn.


def test_the_probes_learn_from_the_labelled_of_the_step_alone_and_only_when_told_to() -> None:
    drawn = {"p0": "aab", "p1": "abb", "p2": "aab", "p3": "abc", "p4": "aab", "p5": "aab"}
    judge = FakeJudge([0.0] * 6, [1.0, 0.0, 0.0, 2.0, 0.0, 0.5])
    ledger = FakeLedger({"p0": "b", "p2": "a", "p3": "c"}, known=["p2"])
    batch, method = of(drawn, 5), care(judge, budget=0.3)
    result = method.supervise(batch, ledger)
    assert [place for place, group in enumerate(result) if group.true] == [0, 2, 3]
    assert judge.taught == []
    with torch.no_grad():  # as in a caller that samples
        assert method.learn() == {"reliability_loss": 0.5}
    assert judge.gradients == [True]
    (new,) = judge.taught
    assert new is not None
    assert batch.features is not None
    assert torch.equal(new.prompt_PH, batch.features.prompt_PH[[0, 2, 3]])
    assert torch.equal(new.response_PGH, batch.features.response_PGH[[0, 2, 3]])
    assert new.right_P.tolist() == [0, 1, 0]
    assert new.outside_P.tolist() == [1, 0, 1]
    assert new.correct_PG.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 1]]


def test_a_label_that_is_awaited_or_a_trusted_vote_teaches_nothing() -> None:
    judge = FakeJudge()
    method = care(judge)
    result = method.supervise(of(EIGHT, 20), FakeLedger("b", at_once=False))
    assert {group.fate for group in result} == {Fate.TRUSTED, Fate.QUERIED, Fate.MASKED}
    method.learn()
    assert judge.taught == [None]


def test_a_step_without_labels_does_not_teach_those_of_the_step_before() -> None:
    judge, ledger = FakeJudge(), FakeLedger("b", most=2)
    method = care(judge)
    for number, drawn in enumerate((EIGHT, {f"q{n}": "aab" for n in range(8)})):
        method.supervise(of(drawn, number), ledger)
        method.learn()
    first, second = judge.taught
    assert first is not None
    assert len(first) == 2
    assert second is None


def test_a_label_that_arrives_between_steps_teaches_in_the_next_in_which_its_problem_is_drawn() -> None:
    judge, ledger = FakeJudge([0.5], [1.0]), FakeLedger("b", at_once=False)
    method = care(judge, budget=1.0)
    for number in range(3):
        method.supervise(of({"p": "aab"}, number), ledger)
        if number == 1:
            ledger.arrive("p")
        method.learn()
    assert judge.taught[:2] == [None, None]
    assert judge.taught[2] is not None
    assert judge.taught[2].outside_P.tolist() == [1]


def test_real_probes_judge_and_learn() -> None:
    rng = torch.Generator().manual_seed(0)
    judge = Judge(4, 3, rng)
    method = Care(judge, spending=Spending(0.25), trusted=0.25, vote_free_steps=0)
    batch, ledger = of(EIGHT, 0, hidden=4), FakeLedger("b")
    assert batch.features is not None
    before = judge.judge(batch.features)
    result = method.supervise(batch, ledger)
    assert judge.updates == 0
    assert method.judged == Judged(before.reliable_P.tolist(), before.score_P.tolist())
    assert sum(group.true for group in result) == len(ledger.names) == 2
    assert set(method.learn()) == {"reliability_loss", "response_loss", "correction_loss"}
    assert judge.updates == 1
    names = [place for place, group in enumerate(result) if group.true]
    assert torch.equal(judge.state()[0]["replay/prompt_PH"], batch.features.prompt_PH[names])


def test_care_reads_votes_and_hidden_states_and_needs_them() -> None:
    method = care(FakeJudge())
    assert method.reads_votes
    assert method.reads_states
    with pytest.raises(ValueError, match="needs the policy's hidden states"):
        method.supervise(step(EIGHT), FakeLedger())


# Who chooses the queries.


def test_queries_are_by_chance_until_the_probes_tell_right_votes_from_wrong() -> None:
    judge = FakeJudge()
    method = Care(judge, spending=Spending(0.25), trusted=0.0, vote_free_steps=0, min_auc=0.6)  # type: ignore[arg-type]
    by_chance = [max(EIGHT, key=dict(zip(EIGHT, draws, strict=True)).__getitem__) for draws in [chances(5)]]
    for auc, chosen in ((None, False), (0.59, False), (0.6, True), (0.9, True)):
        judge.auc, ledger = auc, FakeLedger("b")
        method.supervise(step(EIGHT, features=seen(list(EIGHT.values())), seed=5), ledger)
        assert ledger.names[:1] == (["p6"] if chosen else by_chance)
        assert [query.score is None for query in ledger.asked] == [not chosen] * 2
        assert all(query.reliable is not None for query in ledger.asked)


def chances(seed: int) -> list[float]:
    rng = Random(seed)
    return [rng.random() for _ in EIGHT]


def test_random_queries_keep_the_trust_whatever_the_probes_are_worth() -> None:
    judge = FakeJudge()
    judge.auc = 1.0
    method = Care(judge, spending=Spending(0.25), trusted=0.25, vote_free_steps=0, selection="random", min_auc=0.6)  # type: ignore[arg-type]
    ledger = FakeLedger("b")
    result = method.supervise(step(EIGHT, features=seen(list(EIGHT.values())), seed=5), ledger)
    assert [place for place, verdict in enumerate(result) if verdict.fate is Fate.TRUSTED] == [0, 2]
    draws = chances(5)
    wanted = sorted((place for place in range(8) if place not in (0, 2)), key=lambda place: -draws[place])[:2]
    assert ledger.names == [f"p{place}" for place in wanted]


def test_no_chance_is_drawn_where_the_probes_choose() -> None:
    batch = of(EIGHT, 0)
    care(FakeJudge()).supervise(batch, FakeLedger("b"))
    assert batch.rng.random() == Random(0).random()


def test_a_label_is_held_out_once_before_the_probes_learn_from_it() -> None:
    judge, ledger = FakeJudge(), FakeLedger({"p0": "a", **{f"p{n}": "b" for n in range(1, 8)}}, known=["p0", "p1"])
    ledger.trained = {"p1"}  # by an earlier step of the run
    care(judge).supervise(of(EIGHT, 0), ledger)
    assert ledger.names == ["p6", "p3"]
    assert judge.held_out == [(0.875, True), (0.5, False), (0.375, False)]  # p0, p3 and p6: P1, and whether a is right


def test_a_problem_that_a_step_draws_twice_is_held_out_once() -> None:
    judge = FakeJudge([0.5, 0.25], [1.0, 2.0])
    drawn = step([("p", "aab"), ("p", "abb")], features=seen(["aab", "abb"]))
    care(judge, budget=0.5).supervise(drawn, FakeLedger("b", known=["p"]))
    assert judge.held_out == [(0.5, False)]
