"""The report's sentences: each rule gives one for a made run with its fault, and none for a healthy run."""

from __future__ import annotations

from typing import Any

import pytest
from run_samples import numbers, score

from fedrlvr.config import parse_config
from fedrlvr.reporting.report import render
from fedrlvr.reporting.story import STORY, History, tell
from fedrlvr.reporting.verdict import ClientVerdict, PairedDifference, Verdict

HEALTHY = (200, 260, 320, 380, 440, 500)
"""Correct answers, of 1,000, after each round of a run that learns all the time."""


def run(rights: tuple[int, ...] = HEALTHY, **changes: Any) -> list[dict[str, Any]]:
    """A run of two clients with the same problems, of which each round answers so many of 1,000.

    changes: numbers of both clients; a sequence has a value for each round, from round 1.
    """
    records = []
    for round_, right in enumerate(rights):
        given = {"kl_to_base": 0.01, "unfinished": 0.0, "num-examples": 50, "response_length": 20.0}
        given |= {name: value[round_ - 1] if isinstance(value, tuple) else value for name, value in changes.items()}
        clients = {name: numbers(**{"reward": 0.5, **given}) for name in ("alpha", "beta")} if round_ else {}
        evaluate = {name: {name: score(1000, right)} for name in ("alpha", "beta")}
        records.append({"round": round_, "clients": clients, "seconds": {"train": 2.0}, "evaluate": evaluate})
    return records


def told(records: list[dict[str, Any]], planned: int | None = None, gains: Verdict | None = None) -> dict[str, str]:
    return tell(History(records, len(records) - 1 if planned is None else planned, gains))


def verdict(*words: str) -> Verdict:
    """A client for each word."""
    means = {"better": 0.5, "worse": -0.5, "unclear": 0.0}
    clients = [
        ClientVerdict(f"client-{i}", 100, {}, {"federated": PairedDifference(100, means[word], 0.05)})
        for i, word in enumerate(words, start=1)
    ]
    return Verdict(5, clients)


def test_noise_is_told_with_the_last_round_s_loss() -> None:
    records = run()
    for record in records[1:]:
        record["privacy"] = {"unit": "site", "epsilon": 1.5 * record["round"], "delta": 1e-5, "clip": 1.0, "noise": 2.0}
    assert "(7.5, 1e-05)-differential privacy" in told(records)["noise"]
    assert "noise" not in told(run())


def test_a_healthy_run_has_no_sentence_about_a_fault() -> None:
    sentences = told(run())
    assert list(sentences) == ["rose", "gained", "cost"]
    # By the normal approximation 1.96 sqrt((0.16 + 0.25) / 1000 / 2) = 2.8 points on each side.
    assert sentences["rose"] == (
        "Held-out pass@1 rose from 20.0 % before training to 50.0 % after it "
        "(+30.0 points, 95 % interval +27.1 to +32.8)."
    )
    assert sentences["gained"].startswith("On its own held-out problems, 2 of 2 clients gained")
    assert "alpha and beta" in sentences["gained"]
    # Two clients, five rounds: 100 tokens, 1,000 and 2,000 bytes of each in each; two seconds a round and before it.
    assert sentences["cost"] == "2 clients in 5 rounds sampled 1,000 tokens, exchanged 30.0 kB and took 12.0 s."


def unequal() -> list[dict[str, Any]]:
    records = run()
    for record, right in zip(records, (500, 450, 400, 350, 300, 250), strict=True):
        record["evaluate"]["beta"]["beta"] = score(1000, right)
    return records


def left_out() -> list[dict[str, Any]]:
    records = run()
    records[1]["left_out"] = {"beta": "late"}
    records[3]["left_out"] = {"beta": "late", "alpha": "late"}
    return records


def unevaluated() -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "evaluate"} for record in run()]


STILL = {"grad_norm": 0.0, "tokens_trained": 0}

FAULTS: dict[str, tuple[list[dict[str, Any]], int, Verdict | None, tuple[str, ...]]] = {
    "unfinished": (run(), 8, None, ("5 of its 8 rounds",)),
    "nothing trained": (run((200,) * 6, **STILL), 5, None, ("Nothing was trained",)),
    "not measured": (unevaluated(), 5, None, ("not measured",)),
    "fell": (run((500, 480, 440, 400, 350, 300)), 5, None, ("from 50.0 %", "to 30.0 %")),
    "unchanged": (run((200, 205, 199, 203, 201, 204)), 5, None, ("did not clearly change",)),
    "stalled": (run((200, 400, 495, 500, 498, 500)), 5, None, ("after round 2", "3 more rounds")),
    "collapsed": (run((200, 500, 600, 300, 250, 220)), 5, None, ("60.0 % after round 2", "22.0 % at the end")),
    "past its best": (run((200, 500, 600, 560, 530, 500)), 5, None, ("60.0 % after round 2", "50.0 % at the end")),
    "reward": (run(reward=(0.2, 0.3, 0.4, 0.5, 0.6)), 5, None, ("rose from 0.25", "to 0.55")),
    "reward alone": (run((200,) * 6, reward=(0.2, 0.3, 0.4, 0.5, 0.6)), 5, None, ("do not confirm",)),
    "lost": (unequal(), 5, None, ("1 of 2 clients lost", "beta")),
    "better than alone": (run(), 5, verdict("better", "unclear", "better"), ("client-1 and client-3 are better",)),
    "worse than alone": (run(), 5, verdict("better", "worse"), ("client-2 is worse off",)),
    "like alone": (run(), 5, verdict("unclear", "unclear"), ("no client is clearly",)),
    "length": (run(response_length=(20.0, 20.0, 30.0, 40.0, 40.0)), 5, None, ("grew from 20 to 40",)),
    "cut": (run(unfinished=(0.0, 0.0, 0.0, 0.2, 0.4)), 5, None, ("30.0 %", "length limit")),
    "few learned": (run(zero_variance_groups=(0.5, 0.5, 0.5, 0.8, 0.9)), 5, None, ("85.0 %", "taught nothing")),
    "left out": (left_out(), 5, None, ("beta (2 of 5 rounds) and alpha (1 of 5 rounds)",)),
    "labels": (run(labels_asked=4), 5, None, ("asked for 40 labels",)),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_rule_tells_of_its_fault_and_is_silent_on_a_healthy_run(rule: str) -> None:
    records, planned, gains, words = FAULTS[rule]
    sentences = told(records, planned, gains)
    assert rule in sentences
    for word in words:
        assert word in sentences[rule]
    assert rule not in told(run())


def test_every_rule_is_tested() -> None:
    assert STORY.keys() == {*FAULTS, "rose", "gained", "cost", "noise"}


def test_what_excludes_each_other() -> None:
    for rule, others in {
        "collapsed": ("past its best", "stalled", "fell"),
        "past its best": ("collapsed",),
        "unchanged": ("rose", "fell", "stalled"),
        "nothing trained": ("few learned", "rose"),
        "worse than alone": ("like alone",),
    }.items():
        records, planned, gains, _ = FAULTS[rule]
        assert not {*others} & told(records, planned, gains).keys(), rule


def test_a_run_of_few_rounds_and_an_empty_one() -> None:
    assert list(told(run((200, 500)))) == ["rose", "gained", "cost"]
    assert list(tell(History([], 4))) == ["unfinished", "not measured"]
    shorter, worse = (40.0, 40.0, 30.0, 20.0, 20.0), (0.6, 0.5, 0.4, 0.3, 0.2)
    falling = run((200, 210, 190, 200, 205, 190), response_length=shorter, reward=worse)
    assert "shrank from 40 to 20" in told(falling)["length"]
    assert "fell from 0.55" in told(falling)["reward"]


def test_many_names_are_cut_short() -> None:
    sentences = told(run(), 5, verdict(*["better"] * 7))
    assert "client-1, client-2, client-3, client-4 and 3 more are better" in sentences["better than alone"]


def test_the_report_begins_with_it() -> None:
    page = render(parse_config({"train": {"rounds": 1}}), run((200, 500)))
    assert "What happened" in page
    assert page.index("Held-out pass@1 rose from 20.0 %") < page.index("Before and after")
