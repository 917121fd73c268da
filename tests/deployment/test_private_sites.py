"""Differential privacy at an organisation: replies, the budget over runs and servers, and floors that do not show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from factories import FLOORS_OFF
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from organisations import (
    Deployed,
    Organisations,
    answering,
    federation,
    give_problems,
    header,
    log_of,
    refusal,
    terms,
    train_content,
)

from fedrlvr.adapter import Adapter
from fedrlvr.cli.egress import egress_lines
from fedrlvr.config import Config
from fedrlvr.deployment.site.counts import AnsweredCounts
from fedrlvr.deployment.site.handler import Answering
from fedrlvr.deployment.superlink.disclosure import travels
from fedrlvr.errors import RoundError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.privacy.accountant import epsilon_of, mu_after
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.wire.messages import arrays_to_adapter
from fedrlvr.wire.serialization import pack, unpack

ROUNDS, NOISE = 3, 2.0
ENOUGH = epsilon_of(mu_after(NOISE, ROUNDS), 1e-5) + 1e-6
"""Epsilon of three rounds at a noise multiplier of 2."""


@pytest.fixture
def content(config: Config, cohort: Cohort, tmp_path: Path) -> Any:
    """Makes a `train` message for ann, by its run and round."""
    give_problems(config, tmp_path / "sites")

    def make(run: str = "run", round_: int = 1, clip: float = 1.0, noise: float = NOISE, **request: Any) -> RecordDict:
        said = terms(config, cohort, run=run, rounds=9)
        privacy = {"privacy": {"clip": clip, "noise": noise}} if noise else {}
        return train_content(config, cohort, said, round_, **privacy, **request)

    return make


def sent(site: Answering, content: RecordDict, message_id: str = "m1") -> RecordDict:
    reply, data = site.reply(header(message_id=message_id), pack(content))
    assert reply == {"ok": True}, log_of(site)[-1]
    return unpack(data)


def adapters(cohort: Cohort, content: RecordDict, reply: RecordDict) -> tuple[Adapter, Adapter]:
    """The adapter that a message brought, and the one that its reply holds."""
    like, both = cohort.fresh_adapter(1), []
    for record in (content["arrays"], reply["arrays"]):
        assert isinstance(record, ArrayRecord)
        both.append(arrays_to_adapter(record, like, place="here"))
    return both[0], both[1]


def test_a_noised_adapter_leaves_and_no_number(content: Any, cohort: Cohort, organisation: Organisations) -> None:
    site, message = answering(organisation()), content()
    reply = sent(site, message)
    assert set(reply) == {"arrays", "metrics"}
    numbers = reply["metrics"]
    assert isinstance(numbers, MetricRecord)
    assert dict(numbers) == {"num-examples": 1}
    start, end = adapters(cohort, message, reply)
    count = start.flat().numel()
    assert end.distance(start) == pytest.approx(NOISE * math.sqrt(count), rel=0.1)  # the change itself is at most 1
    again = sent(answering(organisation(limits=FLOORS_OFF)), content("other"), "m2")
    assert adapters(cohort, message, again)[1].distance(end) > NOISE, "other noise, from the system's generator"


def test_the_clip_bounds_what_one_site_can_change(content: Any, cohort: Cohort, organisation: Organisations) -> None:
    site, clip = answering(organisation()), 1e-2
    message = content(clip=clip, noise=1e-6)
    start, end = adapters(cohort, message, sent(site, message))
    assert end.distance(start) == pytest.approx(clip, rel=1e-3), "no more, although training changes more:"
    plain = content("plain", noise=0)
    start, end = adapters(cohort, plain, sent(site, plain, "m2"))
    assert end.distance(start) > 2 * clip


def test_the_round_beyond_the_budget_is_refused_before_anything_is_computed(
    content: Any, organisation: Organisations
) -> None:
    org = organisation(limits={"epsilon": ENOUGH})
    sent(answering(org), content("a"), "m1")
    first = (org.state / "answered.json").read_bytes()
    sent(answering(org), content("a"), "m1")
    assert (org.state / "answered.json").read_bytes() == first, "the same message again costs nothing"
    # Another server, and another worker after a restart.
    sent(answering(org), content("b"), "m2")
    last = answering(org)
    sent(last, content("b", 2), "m3")
    loss = AnsweredCounts(org.state).privacy_loss(org.config.limits)
    assert loss.rounds == ROUNDS
    assert loss.epsilon == pytest.approx(ENOUGH, abs=1e-5)
    assert loss.left == pytest.approx(0.0, abs=1e-5)
    for run, noise in (("a", NOISE), ("b", NOISE), ("c", 100.0)):
        assert "limits.epsilon" in refusal(last, content(run, 3, noise=noise), message_id=f"{run}-{noise}")
        assert not any("step 1 of" in line for line in log_of(last)[-2:])
    assert AnsweredCounts(org.state).privacy_loss(org.config.limits).rounds == ROUNDS, "a refused round costs nothing"
    raised = answering(organisation(limits={"epsilon": 2 * ENOUGH}))
    sent(raised, content("b", 3), "m9")


def test_what_was_spent_without_a_budget_counts_once_there_is_one(content: Any, organisation: Organisations) -> None:
    sent(answering(organisation()), content(noise=0.1))
    strict = answering(organisation(limits={"epsilon": ENOUGH}))
    assert "limits.epsilon" in refusal(strict, content("b"), message_id="m2")


def test_the_same_request_in_another_message_gets_the_same_noise(content: Any, organisation: Organisations) -> None:
    org = organisation(limits={"epsilon": ENOUGH})
    first, again = (pack(sent(answering(org), content(), message_id)) for message_id in ("m1", "m2"))
    assert first == again
    other = pack(sent(answering(org), content(noise=3.0), "m3"))
    assert other != first
    assert AnsweredCounts(org.state).privacy_loss(org.config.limits).rounds == 2


def test_a_site_with_a_budget_lets_nothing_out_without_noise(
    content: Any, config: Config, cohort: Cohort, organisation: Organisations
) -> None:
    site = answering(organisation(limits={"epsilon": ENOUGH}))
    reason = refusal(site, content(noise=0))
    assert "limits.epsilon" in reason
    assert "privacy.unit" in reason


def test_a_missed_floor_does_not_show(content: Any, cohort: Cohort, organisation: Organisations) -> None:
    site = answering(organisation(limits={"least_tokens": 1_000_000}))
    message = content(clip=1.0, noise=1e-6)
    start, end = adapters(cohort, message, sent(site, message))
    assert 0 < end.distance(start) < 1e-3, "noise alone"
    assert any("noise alone" in line and "limits.least_tokens" in line for line in log_of(site))


def test_cards_log_and_status_show_what_is_spent_and_left(content: Any, organisation: Organisations) -> None:
    site = answering(organisation(limits={"epsilon": ENOUGH}))
    sent(site, content())
    spent = epsilon_of(mu_after(NOISE), 1e-5)
    entry = site.egress.log.last("allow")
    assert entry is not None
    assert entry["epsilon"] == pytest.approx(spent)
    text = f"{spent:.3g} spent, {ENOUGH - spent:.3g} left"
    assert any(text in line for line in log_of(site))
    assert any(text in line for line in egress_lines(site.org))


def test_the_server_says_before_a_run_that_no_number_travels(model: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"aggregation": {"weights": "equal"}, "privacy": {"unit": "site", "epsilon": 6.0}}
    lines = "\n".join(travels(federation(model, tmp_path / "problems", tmp_path / "run", **changes)))
    assert "(6, 1e-05)-differentially private" in lines
    assert "no number" in lines
    assert "pass@1" not in lines


def test_a_deployed_run_stops_before_the_budget_and_a_round_begun_anew_costs_nothing(
    model: Path, organisation: Organisations, tmp_path: Path, workers: dict[str, Answering]
) -> None:
    changes: dict[str, Any] = {
        "train": {"rounds": 3, "optimizer_state": "reset"},
        "privacy": {"unit": "site", "epsilon": 6.0, "unnoised_scores": True},
        "aggregation": {"weights": "equal"},
    }
    config = federation(model, tmp_path / "problems", tmp_path / "run", **changes)
    give_problems(config, tmp_path / "sites")
    orgs = {
        "ann": organisation("ann", limits={"epsilon": 6.0}),
        "bob": organisation("bob", limits={"epsilon": 5.0}),  # which three rounds of this noise exceed, and two do not
    }
    with pytest.raises(RoundError, match=r"limits\.epsilon"):
        Deployed(config, orgs).go()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert "evaluate" not in lines[0] or not any(lines[0]["evaluate"].values()), "no score under a budget"
    assert lines[2]["privacy"]["epsilon"] < 5.0
    workers.pop("bob")  # another reads what site.toml says now
    Deployed(config, {**orgs, "bob": organisation("bob", limits={"epsilon": 6.0})}).go(resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["privacy"]["epsilon"] == pytest.approx(6.0, abs=1e-6)
    losses = {name: AnsweredCounts(org.state).privacy_loss(org.config.limits) for name, org in orgs.items()}
    for loss in losses.values():
        assert loss.rounds == 3, "ann gave the same reply to round 3 twice"
        assert loss.epsilon == pytest.approx(6.0, abs=1e-6)
    again = [entry["by"] for entry in DecisionLog(orgs["ann"].state).entries() if entry["decision"] == "allow"]
    assert again.count("the same request again") == 1
