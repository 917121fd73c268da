"""Privacy floors of an organisation that answers, with real training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from organisations import (
    NAMES,
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
    trained,
)

from fedrlvr.config import Config
from fedrlvr.deployment.site.handler import Answering
from fedrlvr.policy.cohort import Cohort
from fedrlvr.server.checkpoint import MEMORY
from fedrlvr.wire.messages import adapter_to_arrays
from fedrlvr.wire.serialization import pack, unpack


def floored(organisation: Organisations, **limits: Any) -> Answering:
    """An organisation with all floors off but these."""
    return answering(organisation(limits=limits))


def withheld(site: Answering, content: RecordDict, message_id: str) -> str:
    reply, data = site.reply(header(message_id=message_id), pack(content))
    assert (reply["ok"], reply["kind"], data) == (False, "withheld", b"")
    return str(reply["reason"])


def test_a_missed_floor_keeps_everything_back_and_the_next_round_begins_without_it(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")  # 8 to train on; a message takes 2 steps x 2 of them
    said, reset = terms(config, cohort), config.train.model_copy(update={"optimizer_state": "reset"})
    site = floored(organisation, least_tokens=10_000)
    first = train_content(config, cohort, said, train=reset)
    reason = withheld(site, first, "m1")
    assert "limits.least_tokens" in reason
    assert log_of(site)[-1] == f"run run, round 1: withheld: {reason}"
    counted = (site.org.state / "answered.json").read_bytes()
    fresh = answering(site.org)
    assert withheld(fresh, first, "m1") == reason, "the same message again, at another worker"
    assert (site.org.state / "answered.json").read_bytes() == counted
    assert len(log_of(fresh)) == 2, "asked and answered, but not computed"
    (memory,) = (site.org.state / "runs" / "run" / "clients" / "ann").glob("round-*")
    assert set(unpack((memory / MEMORY).read_bytes())) == {"fedrlvr"}, "its cursor and steps alone"
    # The next round draws the next problems, as that of a client whose first round was answered does.
    allowed = floored(organisation)
    after = trained(allowed, train_content(config, cohort, said, 2, train=reset), "m2")
    shutil.rmtree(site.org.state / "runs")
    honest = floored(organisation)
    trained(honest, first, "m1")
    assert trained(honest, train_content(config, cohort, said, 2, train=reset), "m2") == after


def test_responses_of_a_policy_that_was_trained_on_too_little_stay(
    model: Path, organisation: Organisations, workers: dict[str, Answering], tmp_path: Path
) -> None:
    config = federation(model, tmp_path / "problems", tmp_path / "run", "pubswap")  # everybody is needed
    give_problems(config, tmp_path / "sites")
    bob = organisation("bob", limits={"least_tokens": 10_000})
    Deployed(config, {"ann": organisation("ann"), "bob": bob}).go()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [list(line.get("left_out", {})) for line in lines] == [[], ["bob"], ["bob"]]
    assert "limits.least_tokens" in lines[1]["left_out"]["bob"]
    sent = [line for line in log_of(workers["bob"]) if "sent: " in line]
    assert len(sent) == 1, "the evaluation before the first round"


def test_a_prompt_filter_of_a_server_is_refused_where_it_would_leave_out_a_problem(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    rows = tmp_path / "sites" / "ann" / "problems" / "train.jsonl"
    rows.write_text(rows.read_text("utf-8").replace("train 3 of ann?", "train 3 of ann, please?"), "utf-8")
    length = len(cohort.base.encode("train 3 of ann, please?"))
    site = floored(organisation, prompt_filter=False)
    short = terms(config, cohort, run="a", max_prompt_tokens=length - 1)
    assert "limits.prompt_filter" in refusal(site, train_content(config, cohort, short))
    shorter = terms(config, cohort, run="b", max_prompt_tokens=1)
    assert "limits.prompt_filter" in refusal(site, train_content(config, cohort, shorter), message_id="m2")
    enough = terms(config, cohort, run="c", max_prompt_tokens=length)
    assert trained(site, train_content(config, cohort, enough), "m3")
    few = floored(organisation, prompt_filter=False, messages_per_day=4)
    assert "limits.prompt_filter" in refusal(few, train_content(config, cohort, short), message_id="m4")
    again = refusal(few, train_content(config, cohort, shorter), message_id="m5")
    assert "limits.messages_per_day" in again, "each refusal is one bit about the prompts, and was counted"
    assert "limits.prompt_filter" not in again


def test_counts_hold_over_runs_and_workers(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    limits = {"messages_per_day": 2}
    for run_ in ("a", "b"):
        trained(floored(organisation, **limits), train_content(config, cohort, terms(config, cohort, run=run_)), run_)
    content = train_content(config, cohort, terms(config, cohort, run="c"))
    assert "limits.messages_per_day" in refusal(floored(organisation, **limits), content, message_id="c")
    assert "limits.rounds" in refusal(floored(organisation, rounds=2), content, message_id="d")


def test_messages_beyond_the_count_drive_out_no_memory_of_another_run(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    site = floored(organisation, messages_per_day=1)
    assert trained(site, train_content(config, cohort, terms(config, cohort, run="first")), "m1")
    for number in range(site.org.config.keep_runs + 1):
        later = train_content(config, cohort, terms(config, cohort, run=f"run-{number}"))
        assert "limits.messages_per_day" in refusal(site, later, message_id=f"n{number}")
    assert [path.name for path in (site.org.state / "runs").iterdir()] == ["first"]


def test_an_adapter_that_is_too_large_is_refused(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    content = train_content(config, cohort, terms(config, cohort))  # a fresh one: A is within +-1/sqrt(k), B zero
    assert "limits.factor_value" in refusal(floored(organisation, factor_value=1e-3), content)
    assert trained(floored(organisation, factor_value=1.0), content, "m2")


def test_another_secret_or_one_setting_changed_draws_other_responses(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")

    def answer(name: str, *, forget: bool = False, **request: Any) -> list[bytes]:
        site = floored(organisation)
        shutil.rmtree(site.org.state / "runs", ignore_errors=True)
        if forget:
            (site.org.state / "sampling.secret").unlink()
        return trained(site, train_content(config, cohort, terms(config, cohort), **request), name)

    first = answer("a")
    assert answer("b") == first, "the same is asked"
    assert answer("c", seed=config.run.seed + 1) != first
    unused = config.train.model_copy(update={"clip_high": 0.3})  # one on-policy update clips nothing
    assert answer("d", train=unused) != first
    assert answer("e", forget=True) != first
    secret = tmp_path / "sites" / "ann" / "state" / "sampling.secret"
    assert (len(secret.read_bytes()), secret.stat().st_mode & 0o777) == (32, 0o600)


def test_another_adapter_with_the_same_request_draws_other_responses(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    """Adapters whose B is zero are one policy: with the same random numbers it would give the same responses."""
    give_problems(config, tmp_path / "sites")

    def rewards(name: str, adapter: int, run_: str) -> tuple[object, ...]:
        content = train_content(config, cohort, terms(config, cohort, run=run_), steps=1)
        content["arrays"] = adapter_to_arrays(cohort.fresh_adapter(adapter))
        reply, data = answering(organisation()).reply(header(message_id=name), pack(content))
        assert reply == {"ok": True}
        numbers = unpack(data)["metrics"]
        return tuple(numbers[key] for key in ("reward", "response_length", "tokens_sampled", "zero_variance_groups"))

    first = rewards("a", 1, "run-a")
    assert rewards("b", 1, "run-b") == first, "all is the same"
    second = rewards("c", 2, "run-c")
    assert second != first
    assert rewards("d", 2, "run-d") == second, "as often as it is asked"
    assert rewards("e", 1, "run-e") == first


@pytest.mark.report
def test_a_federation_goes_through_under_the_default_floors(
    model: Path, organisation: Organisations, workers: dict[str, Answering], tmp_path: Path
) -> None:
    config = federation(
        model,
        tmp_path / "problems",
        tmp_path / "run",
        train={"local_steps": 8},  # 16 draws of 8 problems, 4 responses of up to 8 tokens to each
        lora={"targets": ["q_proj", "v_proj"]},
    )
    give_problems(config, tmp_path / "sites")
    Deployed(config, {n: organisation(n, limits=None) for n in NAMES}, targets=["q_proj", "v_proj"]).go()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert not any("left_out" in line for line in lines)
    for line in lines[1:]:
        for numbers in line["clients"].values():
            assert numbers["num-examples"] == 8
            # Steps of 0.2 for 8 problems; no largest ratio, no KL of the last step's two problems.
            assert numbers["reward"] == pytest.approx(round(numbers["reward"] * 5) / 5)
            assert not {"ratio_max", "kl_to_base"} & {name for name, value in numbers.items() if value is not None}
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert not any(line.get("evaluate", {}).get(name) for line in lines for name in NAMES), "4 held-out problems"


def test_a_changed_site_toml_holds_from_the_next_message_on(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    site, said = floored(organisation), terms(config, cohort)
    model = trained(site, train_content(config, cohort, said), "m1") and site.models["tiny"]
    organisation(limits={"local_steps": 1})
    assert "limits.local_steps" in refusal(site, train_content(config, cohort, said, 2), message_id="m2")
    assert "site.toml has changed (limits), which holds from this message on" in log_of(site)
    organisation()
    assert trained(site, train_content(config, cohort, said, 2), "m3")
    assert site.models["tiny"] is model, "which was not loaded again"
    organisation(engine={"threads": 1, "decode_rows": 8})
    assert trained(site, train_content(config, cohort, said, 2), "m4")
    assert site.models["tiny"] is not model
    site.org.path.write_text("nam = 1\n")
    reply, _ = site.reply(header(message_id="m5"), pack(train_content(config, cohort, said, 2)))
    assert (reply["ok"], reply["kind"]) == (False, "failed")
    assert "ConfigError" in log_of(site)[-1]


def test_data_that_changed_in_mid_run_are_refused_unless_the_site_takes_them(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    site, said = floored(organisation), terms(config, cohort)
    asked = [train_content(config, cohort, said, round_) for round_ in (1, 2)]
    trained(site, asked[0], "m1")
    file = site.org.directory / "problems" / "train.jsonl"
    rows = file.read_text()
    file.write_text(rows)  # the same, at another time
    trained(site, asked[1], "m2")

    file.write_text("".join(rows.splitlines(keepends=True)[1:]))
    assert "changed_data" in refusal(site, asked[1], message_id="m3")
    restarted = answering(site.org)
    assert "changed_data" in refusal(restarted, asked[1], message_id="m4")
    line = "run run: the data of task main have changed since the run's last message"
    assert line in log_of(site)
    assert line in log_of(restarted)
    file.write_text(rows)
    assert trained(site, asked[1], "m5")

    file.write_text("".join(rows.splitlines(keepends=True)[1:]))
    organisation(changed_data="take")
    assert trained(site, asked[1], "m6")
    assert len(site._run_data["run"].data.train) == len(rows.splitlines()) - 1
    assert trained(site, asked[1], "m7")
    assert log_of(site).count(line) == 2
