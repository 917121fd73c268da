"""What leaves an organisation: floors after training, numbers over enough problems, and their rounding, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from factories import FLOORS_OFF, make_adapter, make_request
from flwr.app import MetricRecord, RecordDict

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.client.metrics import LabelMetrics
from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import Memory
from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.site.release import (
    POOLED,
    SiteRelease,
    _Chances,
    pooled,
    rounded_scores,
    rounded_share,
    rounded_to_size,
    share_step,
    two_digits,
)
from fedrlvr.errors import FloorError, LimitError
from fedrlvr.rl import Group, Response
from fedrlvr.tasks.problem import Question
from fedrlvr.wire.messages import NUMBERS, PROBES, RespondRequest, SourceScores, StretchRequest, probes_record


@pytest.mark.parametrize(
    ("n", "step"),
    # 0.5 / sqrt(n) = 0.5, 0.25, 0.177, 0.125, 0.1, 0.0645, 0.05, 0.025, 0.02, 0.01
    [
        (1, 0.5),
        (4, 0.5),
        (8, 0.2),
        (16, 0.2),
        (25, 0.1),
        (60, 0.1),
        (100, 0.05),
        (400, 0.05),
        (625, 0.02),
        (2500, 0.01),
    ],
)
def test_the_step_of_a_share(n: int, step: float) -> None:
    assert share_step(n) == pytest.approx(step)


@pytest.mark.parametrize(
    ("value", "n", "rounded"),
    [
        *((0.24, 100, 0.25), (0.22, 100, 0.2), (0.875, 8, 0.8), (-0.35, 8, -0.4)),
        # A reward of 37.4 in place of 0.374: steps of 0.2 x 100.
        *((37.4, 8, 40.0), (0.374, 8, 0.4), (1.2, 100, 1.0)),
    ],
)
def test_shares_and_rewards_are_multiples_of_their_step(value: float, n: int, rounded: float) -> None:
    assert rounded_share(value, n) == rounded


@pytest.mark.parametrize(
    ("value", "n", "chance", "rounded"),
    # steps of 0.2 (n = 8) and 0.05 (n = 100), of 100, 1 and 0.01
    [(64, 8, 0.1, 60), (64, 8, 0.9, 80), (0.47, 100, 0.5, 0.45), (-0.47, 100, 0.5, -0.45), (0.0047, 8, 0.5, 0.004)],
)
def test_numbers_that_labels_decide_are_rounded_relative_to_their_size(
    value: float, n: int, chance: float, rounded: float
) -> None:
    result = rounded_to_size(value, n, chance)
    assert (result, type(result)) == (pytest.approx(rounded), type(value))


def test_other_numbers_keep_two_digits_and_their_type() -> None:
    assert [two_digits(value) for value in (0.012345, -3.14159, 98.7, 0.0)] == [0.012, -3.1, 99.0, 0.0]
    assert (two_digits(12_345), type(two_digits(12_345))) == (12_000, int)
    assert two_digits(float("inf")) == float("inf")


def source(name: str, n: int, total: float, squares: float | None = None) -> SourceScores:
    return SourceScores(source=name, n=n, total=total, squares=total if squares is None else squares)


def test_small_sources_are_pooled() -> None:
    scores = [source("a", 10, 4), source("b", 5, 2), source("c", 4, 1, 0.5)]
    assert pooled(scores, 8, "main") == [source("a", 10, 4), source(POOLED, 9, 3, 2.5)]
    assert pooled(scores, 4, "main") == scores
    assert pooled([], 8, "main") == []


def test_a_pool_that_is_too_small_takes_the_names_of_all_sources() -> None:
    """Else its score would be the difference of the whole and the others, if the whole is known."""
    assert pooled([source("a", 10, 4), source("b", 5, 2)], 8, "main") == [source("main", 15, 6)]


def test_too_few_held_out_problems_give_no_score() -> None:
    assert pooled([source("a", 4, 4), source("b", 3, 2)], 8, "main") == []
    assert pooled([source("a", 7, 4)], 8, "main") == []


@pytest.mark.parametrize(("n", "total", "squares"), [(9, 4.0, 4.0), (100, 33.0, 20.0), (25, 12.5, 6.25), (8, 0.0, 0.0)])
def test_rounded_scores_are_those_of_some_problems(n: int, total: float, squares: float) -> None:
    rounded = rounded_scores(source("a", n, total, squares))
    mean, square = rounded.total / n, rounded.squares / n
    assert mean == pytest.approx(rounded_share(total / n, n))
    assert mean**2 - 1e-9 <= square <= mean + 1e-9
    assert abs(square - squares / n) <= share_step(n)


def test_an_evaluation_leaves_pooled_and_rounded(nearest: None) -> None:
    release = SiteRelease(Limits(), "main")
    # 0.47 in steps of 0.2 (n = 9) and 0.05 (n = 100)
    kept = release.scores(request(), [source("a", 100, 47), source("b", 9, 4.23)])
    assert [(s.source, s.n, s.total) for s in kept] == [("a", 100, pytest.approx(45)), ("b", 9, pytest.approx(3.6))]
    exact = SiteRelease(Limits(round_numbers=False), "main")
    assert exact.scores(request(), [source("a", 100, 47)]) == [source("a", 100, 47)]


def test_no_score_leaves_under_a_budget_of_epsilon_unless_the_site_says_so(nearest: None) -> None:
    scores = [source("a", 100, 47)]
    assert SiteRelease(Limits(epsilon=8.0), "main").scores(request(), scores) == []
    allowed = SiteRelease(Limits(epsilon=8.0, unnoised_scores=True), "main")
    assert allowed.scores(request(), scores) == SiteRelease(Limits(), "main").scores(request(), scores) != []


# Training.


def response(tokens: list[int], probabilities: list[float]) -> Response:
    return Response(tokens, [math.log(p) for p in probabilities], "", True, reward=0.0)


def group(problem: str, advantages: list[float], length: int = 8) -> Group:
    responses = [response([1] * length, [0.5] * length) for _ in advantages]
    return Group(Question(id=problem, prompt="p", kind="number", source="s"), [1], responses, advantages=advantages)


def memory(*steps: tuple[float, list[Group]], labels: LabelMetrics | None = None, by_response: bool = False) -> Memory:
    """A client's memory after local steps, each of a learning rate and groups."""
    made = Memory(labels=labels)
    for rate, groups in steps:
        made.influences(groups, rate, by_response=by_response)
    return made


def eight(learned: int = 8, length: int = 8) -> list[Group]:
    """Groups of eight problems, of which some have a gradient: 4 responses of `length` tokens each."""
    return [group(f"p{i}", [1.0, -1.0, 1.0, -1.0] if i < learned else [0.0] * 4, length) for i in range(8)]


def request(kind: str = "train", **changes: Any) -> ClientRequest:
    asked: StretchRequest = make_request()
    if kind == "respond":
        settings = asked.model_dump() | {"coordination": {"type": "pubswap", "public_problems": 6}, "exchange": 1}
        asked = RespondRequest.model_validate(settings)
    fields = {"asked": asked.model_copy(update=changes), "place": "ann: round 1", "seed": 5}
    data, client = SimpleNamespace(name="ann", secret=b"", validation=range(9)), SimpleNamespace(initial=make_adapter())
    return cast(ClientRequest, SimpleNamespace(**fields, data=data, client=client))


def reply(**numbers: float | list[int] | list[float]) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"num-examples": 123, **numbers})})


RELEASE = SiteRelease(Limits(), "main")


@pytest.fixture
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are rounded to the nearest multiple."""
    monkeypatch.setattr(_Chances, "__call__", lambda *_: 0.5)


def missed(made: Memory, kind: str = "train", release: SiteRelease = RELEASE, sent: RecordDict | None = None) -> str:
    with pytest.raises(FloorError) as error:
        release.trained(request(kind), made, sent or reply())
    return str(error.value)


def test_what_one_step_learns_from_is_shared_among_its_problems() -> None:
    # |advantages| x tokens, all of one probability: 2 x 10, 1 x 10, 0; a learning rate of 0.3
    made = memory((0.3, [group("a", [1.0, -1.0], 10), group("b", [0.5, -0.5], 10), group("c", [0.0, 0.0], 10)]))
    assert made.influence == {"a": pytest.approx(0.2), "b": pytest.approx(0.1), "c": 0.0}
    assert made.tokens == 40


def test_a_step_without_a_gradient_or_rate_counts_for_nothing() -> None:
    made = memory((0.3, [group("a", [0.0, 0.0])]), (0.0, [group("b", [1.0, -1.0])]))
    assert made.influence == {"a": 0.0, "b": 0.0}


def test_enough_training_leaves() -> None:
    made = memory((0.1, eight()))  # 8 x 4 x 8 = 256 tokens
    assert RELEASE.trained(request(), made, reply())["metrics"]["num-examples"] == 123


@pytest.mark.parametrize("kind", ["train", "respond"])
@pytest.mark.parametrize(
    ("steps", "floor"),
    [
        ([(0.1, eight()[:7])] * 2, "least_problems"),
        ([(0.1, eight(3, 100))], "least_learned"),
        ([(0.1, eight(8, 7))], "least_tokens"),  # 224
        # Of two steps the second has hardly a rate, as at the end of a schedule: 1 of 1.1 is one problem's.
        ([(1.0, [group("p0", [1.0, -1.0], 100)]), (0.1, eight())], "problem_share"),
        # In one step, one problem's responses are long and all others' short.
        ([(0.1, [group("x", [1.0, -1.0, 1.0, -1.0], 600), *eight()])], "problem_share"),
    ],
)
def test_a_missed_floor_is_named_and_no_count_is(kind: str, steps: list[Any], floor: str) -> None:
    text = missed(memory(*steps), kind)
    assert f"limits.{floor} = {getattr(Limits(), floor)}" in text
    assert text.count("limits.") == 1
    assert text.startswith("ann: round 1: ")


def test_positions_are_different_beginnings_before_a_token_that_counts() -> None:
    made = group("a", [1.0, -1.0, 1.0, 0.0])
    made.prompt_ids = [7, 7, 7]
    made.responses = [
        response([1, 2, 3], [0.5, 0.5, 0.5]),  # after 1 and after 1 2
        response([1, 2, 4, 5], [0.5, 0.5, 0.5, 0.995]),  # the same: 1 - 0.995 is below 0.02 x 0.5
        response([6, 2, 4], [0.5, 0.995, 0.995]),  # none
        response([8, 9, 9], [0.5, 0.5, 0.5]),  # without an advantage
    ]
    assert memory((0.1, [made])).positions == 3 + 2
    assert memory((0.1, [made])).tokens == 3 + 4 + 3
    assert memory((0.1, [made]), (0.1, [made])).positions == 3 + 2 + 2, "its prompt counts once"
    assert memory((0.0, [made])).positions == 0, "without a rate nothing is learnt"
    certain = group("b", [1.0, -1.0])
    certain.responses = [response([1, 2], [1.0, 1.0])] * 2
    assert memory((0.1, [certain])).positions == 0


def test_long_responses_of_little_weight_do_not_count_beside_short_ones() -> None:
    """A response of 1 token and one of 100, whose last alone is uncertain: with `grpo` its weight is 1/100."""
    made = group("a", [1.0, -1.0])
    made.responses = [response([1], [0.5]), response([2] * 100, [0.9999] * 99 + [0.5])]
    assert memory((0.1, [made])).positions == 1 + 99
    assert memory((0.1, [made]), by_response=True).positions == 1
    weak = group("b", [1.0, -0.01])
    weak.responses = made.responses
    assert memory((0.1, [weak])).positions == 1


@pytest.mark.parametrize(("width", "leaves"), [(64, True), (65, False)])
def test_an_adapter_needs_as_many_positions_as_its_widest_layer_has_inputs(width: int, leaves: bool) -> None:
    # 8 problems: a prompt of one token and 7 beginnings each
    asked = request()
    asked.client.__dict__["initial"] = make_adapter(shapes={"up": (4, 3), "down": (3, width)})
    if leaves:
        assert RELEASE.trained(asked, memory((0.1, eight())), reply())
        return
    with pytest.raises(FloorError, match=r"limits\.least_positions = 1\.0"):
        RELEASE.trained(asked, memory((0.1, eight())), reply())


def test_a_token_that_makes_up_the_update_keeps_it_back() -> None:
    made = memory((0.1, eight()))
    made.metrics.ratio_max = 20.0
    assert RELEASE.trained(request(), made, reply())
    made.metrics.ratio_max = 20.1
    assert "limits.largest_ratio" in missed(made)


def test_responses_of_a_policy_without_local_steps_leave() -> None:
    sent = reply()
    assert RELEASE.trained(request("respond"), Memory(), sent) is sent


def test_an_adapter_without_local_steps_does_not_leave() -> None:
    assert "limits.least_problems" in missed(Memory())


def test_probes_need_as_many_labels_as_an_adapter_needs_problems() -> None:
    sent = reply()
    sent[PROBES] = probes_record(torch.zeros(3))
    assert "limits.least_problems" in missed(memory((0.1, eight()), labels=LabelMetrics(total=7)), sent=sent)
    assert RELEASE.trained(request(), memory((0.1, eight()), labels=LabelMetrics(total=8)), sent)


def test_with_floors_off_everything_leaves_as_it_is() -> None:
    release = SiteRelease(Limits.model_validate(FLOORS_OFF), "main")
    numbers = {"reward": 0.123456, "ratio_max": 1.23456, "p1_n": [1] + [0] * 9, "p1_sum": [0.05] + [0.0] * 9}
    sent = reply(**numbers, p1_right=[1] + [0] * 9)
    before = dict(sent["metrics"])
    assert dict(release.trained(request(), memory((0.1, eight(1)[:1])), sent)["metrics"]) == before


def test_numbers_over_too_few_problems_stay(nearest: None) -> None:
    labels = LabelMetrics(used=9, total=7)
    counts = {"labels_asked": 3, "labels_used": 9, "labels_total": 7}
    of_labels = {"verified_reward": 0.5, "majority_right": 1.0, "reliability_loss": 0.3}
    sent = reply(reward=0.55, ratio_max=1.5, kl_to_base=0.1, grad_norm=0.12345, **counts, **of_labels)
    steps = make_request().train.model_copy(update={"problems_per_step": 4})
    made = memory((0.1, eight()[:4]), (0.1, eight()[4:]), labels=labels)
    assert dict(RELEASE.trained(request(train=steps), made, sent)["metrics"]) == {
        "num-examples": 123,
        "reward": 0.6,
        "grad_norm": 0.2,
        **counts,
    }, "the KL is of the four problems of the last step"


def test_sampled_tokens_are_rounded_as_the_trained_ones_where_problems_are_drawn_again(nearest: None) -> None:
    numbers = {"tokens_sampled": 1234, "response_length": 123.4, "problems_redrawn": 17}
    made = memory((0.1, eight()))
    again = make_request().train.model_copy(update={"dynamic_sampling": 2})
    # Two digits without; of 8 problems a multiple of 0.2 times the next power of ten with it.
    plain = RELEASE.trained(request(), made, reply(**numbers))["metrics"]
    assert (plain["tokens_sampled"], plain["response_length"]) == (1200, 120.0)
    dynamic = RELEASE.trained(request(train=again), made, reply(**numbers))["metrics"]
    assert dynamic["tokens_sampled"] == 2000
    assert (dynamic["response_length"], dynamic["problems_redrawn"]) == (200.0, 20)


def test_the_share_of_a_mixed_adapter_leaves_only_where_nothing_is_rounded() -> None:
    """It compares counts of right responses exactly: 9 validation problems are enough for `least_scored` = 8."""
    made = memory((0.1, eight()))
    for limits, leaves in ((Limits(), False), (Limits(round_numbers=False), True)):
        numbers = SiteRelease(limits, "main").trained(request(), made, reply(global_share=0.75))["metrics"]
        assert ("global_share" in numbers) == leaves
    strict = SiteRelease(Limits(round_numbers=False, least_scored=10), "main")
    assert "global_share" not in strict.trained(request(), made, reply(global_share=0.75))["metrics"]


def test_numbers_over_enough_labels_leave_rounded(nearest: None) -> None:
    sent = reply(verified_reward=0.47, majority_right=0.55, reliability_loss=0.3456, kl_to_base=0.01234)
    made = memory((0.1, eight()), labels=LabelMetrics(used=9, total=9))
    numbers = RELEASE.trained(request(), made, sent)["metrics"]
    assert dict(numbers) == {
        "num-examples": 123,
        "verified_reward": 0.4,
        "majority_right": 0.6,
        "reliability_loss": 0.4,
        "kl_to_base": 0.012,
    }


def test_a_calibrations_small_bins_are_emptied(nearest: None) -> None:
    n, right = [7, 8, 100] + [0] * 7, [7, 3, 47] + [0] * 7
    sent = reply(p1_n=n, p1_sum=[0.3, 1.2, 23.0] + [0.0] * 7, p1_right=right)
    numbers: Any = RELEASE.trained(request(), memory((0.1, eight())), sent)["metrics"]
    assert numbers["p1_n"] == [0, 8, 100] + [0] * 7
    assert numbers["p1_right"] == [0, 3, 45] + [0] * 7, "0.375 of 8 is 0.4, so 3.2; 0.47 of 100 is 0.45"
    assert numbers["p1_sum"] == [0.0, pytest.approx(1.6), pytest.approx(25.0)] + [0.0] * 7
    small: Any = reply(p1_n=[3] + [0] * 9, p1_sum=[0.2] + [0.0] * 9, p1_right=[1] + [0] * 9)
    assert set(RELEASE.trained(request(), memory((0.1, eight())), small)["metrics"]) == {"num-examples"}


def test_a_calibration_in_which_no_majority_was_right_leaves_as_a_whole() -> None:
    sent: Any = reply(p1_n=[100] + [0] * 9, p1_sum=[2.0] + [0.0] * 9, p1_right=[0] * 10)
    exact = SiteRelease(Limits(round_numbers=False), "main")
    numbers: Any = exact.trained(request(), memory((0.1, eight())), sent)["metrics"]
    assert numbers["p1_n"] == [100] + [0] * 9
    assert numbers["p1_right"] == [0] * 10, "the server refuses two lists of the three"


def test_numbers_of_an_exchange_are_rounded_by_its_public_problems(nearest: None) -> None:
    sent = reply()
    sent["exchange"] = MetricRecord({"own_correct": 0.47, "foreign_logp": -1.2345, "swapped_in": 17, "rescued": 1})
    numbers = RELEASE.trained(request("respond"), memory((0.1, eight())), sent)["exchange"]
    # six problems: steps of 0.5
    assert dict(numbers) == {"own_correct": 0.5, "foreign_logp": -1.2, "swapped_in": 17, "rescued": 1}


def test_no_number_leaves_with_more_digits_than_its_rule_says() -> None:
    """Whatever number a client may report: a new one cannot be forgotten."""
    names = [name for name in NUMBERS if name not in ("num-examples", "labels_asked", "labels_used", "labels_total")]
    names += ["reward_1", "reward_brevity"]
    made = memory((0.1, eight()), labels=LabelMetrics(used=9, total=9))
    numbers: Any = RELEASE.trained(request(), made, reply(**dict.fromkeys(names, 0.12345678)))["metrics"]
    assert {value for name, value in numbers.items() if name in names} == {0.0, 0.2, 0.12}


def test_the_remainder_is_the_chance_of_rounding_up() -> None:
    """0.45 in steps of 0.2 is 2.25 of them: a quarter of the chances gives 3."""
    assert [rounded_share(0.45, 8, chance) for chance in (0.0, 0.5, 0.74, 0.76, 0.99)] == [0.4, 0.4, 0.4, 0.6, 0.6]
    assert [rounded_share(0.4, 8, chance) for chance in (0.0, 0.5, 0.99)] == [0.4] * 3
    # At the ends either multiple is as likely: a share of 0 looks like one of 0.1.
    for ends in ((0.0, 0.1), (0.9, 1.0)):
        assert len({tuple(rounded_share(end, 8, chance) for chance in (0.1, 0.4, 0.6, 0.9)) for end in ends}) == 1
    assert [rounded_share(1.0, 8, chance) for chance in (0.1, 0.9)] == [0.8, 1.0]


def test_chances_are_the_messages_own_and_uniform() -> None:
    chances, same = _Chances(request()), _Chances(request())
    other = _Chances(cast(ClientRequest, SimpleNamespace(seed=6)))
    drawn = [chances(str(i)) for i in range(1000)]
    assert drawn == [same(str(i)) for i in range(1000)]
    assert not set(drawn) & {other(str(i)) for i in range(1000)}
    assert 0 <= min(drawn) < 0.01
    assert 0.99 < max(drawn) < 1
    assert sum(drawn) / 1000 == pytest.approx(0.5, abs=0.03)


# What comes in.


def test_factors_within_the_bounds_are_accepted() -> None:
    RELEASE.accept(request(), make_adapter(0.1), None)
    RELEASE.accept(request(), make_adapter(0.1), make_adapter(0.1))


@pytest.mark.parametrize("what", ["adapter", "change"])
def test_factors_beyond_the_bounds_are_refused_by_name(what: str) -> None:
    def accept(limits: Limits, part: Adapter) -> None:
        parts = (part, None) if what == "adapter" else (make_adapter(0.0), part)
        SiteRelease(limits, "main").accept(request(), *parts)

    # A and B of ones, 2 x 2 numbers each: norms of 2, and a scale of 3 / 2 x 2 x 2 = 6
    ones = Adapter({"q": Factors(torch.ones(2, 2), torch.ones(2, 2))}, 3.0)
    accept(Limits(factor_value=1.0, update_norm=6.0), ones)
    for limits, name in ((Limits(factor_value=0.99), "factor_value"), (Limits(update_norm=5.99), "update_norm")):
        with pytest.raises(LimitError, match=rf"^ann: round 1: .*{what}.* layer q.*limits\.{name}"):
            accept(limits, ones)
    huge = replace(ones, layers={"q": Factors(torch.full((2, 2), 3e38), torch.ones(2, 2))})
    with pytest.raises(LimitError, match="factor_value"):
        accept(Limits(), huge)
