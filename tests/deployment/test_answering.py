"""What an organisation answers: what the local engine's client would, once for each message, and within its limits."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from organisations import (
    VARIANTS,
    Deployed,
    Organisations,
    References,
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
from siteparts import output_of
from small_runs import adapter_bytes, without_seconds, write_problems

from fedrlvr.client.app import CohortApp
from fedrlvr.config import Config, PromptConfig
from fedrlvr.deployment.site import client_app
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.handler import Answering
from fedrlvr.deployment.site.wording import asked_for
from fedrlvr.deployment.terms import terms_record
from fedrlvr.errors import ConfigError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.responses import read_logged, response_files
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.wire.serialization import pack, unpack

Worker = Callable[[Organisation], Answering]


@pytest.fixture
def ann(organisation: Organisations, config: Config, tmp_path: Path) -> Answering:
    give_problems(config, tmp_path / "sites")
    return answering(organisation())


@pytest.mark.parametrize("variant", VARIANTS)
def test_organisations_come_to_what_the_local_engine_comes_to(
    variant: str,
    model: Path,
    organisation: Organisations,
    workers: dict[str, Answering],
    reference: References,
    tmp_path: Path,
) -> None:
    config = federation(model, tmp_path / "problems", tmp_path / "run", variant)
    give_problems(config, tmp_path / "sites")
    Deployed(config, {name: organisation(name) for name in ("ann", "bob")}).go()
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(reference(variant))
    assert without_seconds(tmp_path / "run") == without_seconds(reference(variant))
    log = log_of(workers["ann"])
    assert len([line for line in log if line.startswith("loaded tiny in ")]) == 1, "once for all messages"
    assert not [line for line in log if "train-" in line or "of ann?" in line], "no id and no prompt"


def test_a_message_that_is_asked_again_gets_the_same_bytes_and_is_not_applied_again(
    model: Path,
    organisation: Organisations,
    workers: dict[str, Answering],
    reference: References,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = federation(model, tmp_path / "problems", tmp_path / "run", "pubswap")
    give_problems(config, tmp_path / "sites")
    asked = client_app.ask
    again = 0

    def twice(org: Organisation, head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        nonlocal again
        first = asked(org, head, data)
        if again % 3 == 0:
            workers.pop(org.name)  # also of another worker
        again += 1
        assert asked(org, head, data) == first
        return first

    monkeypatch.setattr(client_app, "ask", twice)
    Deployed(config, {name: organisation(name) for name in ("ann", "bob")}).go()
    assert again == 2 * (2 * 3 + 2)  # of both, two rounds of two exchanges and the end, and two evaluations
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(reference("pubswap"))


class Stop(Exception):
    """Ends a server."""


@pytest.mark.parametrize("variant", ["pubswap", "asking", "flora"])
@pytest.mark.parametrize("after", ["asked", "answered"])
def test_a_server_that_asks_a_round_again_comes_to_the_same(
    variant: str,
    after: str,
    model: Path,
    organisation: Organisations,
    workers: dict[str, Answering],
    reference: References,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = federation(model, tmp_path / "problems", tmp_path / "run", variant)
    give_problems(config, tmp_path / "sites")
    orgs = {name: organisation(name) for name in ("ann", "bob")}

    def before(client: str, message: Message) -> None:
        asked = client, message.metadata.message_type, message.metadata.group_id
        if after == "asked" and asked == ("bob", "train", "2"):
            raise Stop

    write = RoundRecord.to_json

    def to_json(record: RoundRecord) -> dict[str, Any]:  # the round is over for the clients, and not for the server
        if after == "answered" and record.round == 2:
            raise Stop
        return write(record)

    first = Deployed(config, orgs, before=before)
    with monkeypatch.context() as patched:
        patched.setattr(RoundRecord, "to_json", to_json)
        with pytest.raises(Stop):
            first.go()
    workers.clear()  # as if the machines had been started anew
    Deployed(config, orgs).go(resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(reference(variant))
    assert without_seconds(tmp_path / "run") == without_seconds(reference(variant))


# One organisation, and messages one by one.


def test_the_log_says_what_was_asked_and_what_was_sent(config: Config, cohort: Cohort, ann: Answering) -> None:
    (a, b) = trained(ann, train_content(config, cohort, terms(config, cohort)))
    size = len(a) + len(b)
    log = [line for line in log_of(ann) if "answered.json" not in line]
    assert log[0] == (
        "run run, round 1: asked to train 2 steps x 2 problems x 4 responses with rewards from labels and send the "
        "adapter"
    )
    assert log[1].startswith("loaded tiny in ")
    assert [line.partition(":")[0] for line in log[2:6]] == ["sampler", "attention", "number format", "batches"]
    assert [line.split(": mean")[0] for line in log[6:8]] == [f"run run, round 1: step {i} of 2" for i in (1, 2)]
    assert log[8].startswith("run run, round 1: sent: adapter ")
    counted = int(log[8].split("adapter ")[1].split(" bytes")[0].replace(",", ""))
    assert size < counted < size + 200  # and the arrays' names
    assert len(log) == 9


def test_responses_are_written_here_only_if_site_toml_says_so_and_never_leave(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    content = train_content(config, cohort, terms(config, cohort))
    silent = answering(organisation())
    sent = trained(silent, content, "m1")
    assert response_files(silent.org.state / "runs" / "run") == {}
    telling = answering(organisation(responses=3))
    assert trained(telling, content, "m2") == sent, "the adapter is the same with them"
    path = response_files(telling.org.state / "runs" / "run")["ann"]
    assert path.stat().st_mode & 0o777 == 0o600
    responses = read_logged(path)
    assert [(response.round, response.prompt.endswith("of ann?")) for response in responses] == [(1, True)] * 3
    assert not [line for line in log_of(telling) if "train-" in line or "of ann?" in line]
    output = output_of("responses", telling.org.directory, "--run", "run")
    assert responses[0].prompt in output
    with pytest.raises(ConfigError, match="--run other"):
        output_of("responses", telling.org.directory, "--run", "other")
    path.unlink()
    with pytest.raises(ConfigError, match="responses = 4"):
        output_of("responses", telling.org.directory)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokenizer_id": "0"}, "another tokenizer .*ann .*'tiny'"),
        ({"weights_id": "0"}, "other weights .*ann"),
        ({"model_id": "0"}, "another model .*ann"),
        ({"task": "other"}, "ann .*'other' .*tasks in site.toml"),
        ({"model": "/etc/other"}, "ann .*'/etc/other' .*models in site.toml"),
        ({"client": "bob"}, "bob .*ann"),
        ({"clients": 1}, "ann .*limits.least_clients.* 1"),
    ],
)
def test_terms_that_are_refused(
    changes: dict[str, Any], text: str, config: Config, cohort: Cohort, ann: Answering
) -> None:
    reason = refusal(ann, train_content(config, cohort, terms(config, cohort, **changes)))
    assert re.search(text, reason)
    assert "main" not in reason, "other tasks are nobody's business"
    assert not (ann.org.state / "runs" / "run" / "clients").exists(), "nothing was computed"


def test_what_is_no_message_of_a_server_is_refused(config: Config, cohort: Cohort, ann: Answering) -> None:
    good = terms(config, cohort)
    body = train_content(config, cohort, good)
    assert "terms" in refusal(ann, train_content(config, cohort, None))
    plain = json.loads(good.model_dump_json())
    later = ConfigRecord({"json": json.dumps(plain | {"protocol": 9, "version": "9.9"})})
    assert "(fedrlvr 9.9) speaks protocol 9" in refusal(ann, RecordDict({**body, "terms": later}))
    assert "messages of type query.other are not answered" in refusal(ann, body, message_type="query.other")
    assert "header that cannot be used" in refusal(ann, body, message_type="nonsense")
    assert "header that cannot be used" in refusal(ann, body, run_id="x")
    assert "header that cannot be used" in refusal(ann, body, message_id="")
    assert "without usable public problems" in refusal(
        ann,
        RecordDict({**body, "config": _respond(config)}),
        message_type="query.respond",
    )
    assert "request that cannot be used" in refusal(ann, body, message_type="evaluate")
    assert ann.reply(header(), b"rubbish")[0]["reason"] == "bytes that are no content of a message"
    assert ann.models == {}


def _respond(config: Config) -> ConfigRecord:
    request = {
        "round": 1,
        "seed": 1,
        "sampling": config.sampling.model_dump(),
        "steps": 1,
        "train": config.train.model_dump(),
        "supervision": config.supervision.model_dump(),
        "exchange": 1,
        "coordination": {"type": "pubswap"},
    }
    return ConfigRecord({"request": json.dumps(request)})


def test_a_reason_is_never_longer_than_may_leave(config: Config, cohort: Cohort, ann: Answering) -> None:
    bad = train_content(config, cohort, terms(config, cohort))
    request = json.loads(str(bad["config"]["request"]))
    bad["config"] = ConfigRecord({"request": json.dumps({**request, **{f"{'x' * 300}{i}": 1 for i in range(9)}})})
    assert len(refusal(ann, bad)) == 500


def test_what_goes_wrong_is_not_told_to_the_server(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    give_problems(config, tmp_path / "sites")
    task = {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "rewards": "small_runs:tells_all"}
    site = answering(organisation(tasks={"main": task}))
    reply, _ = site.reply(header(), pack(train_content(config, cohort, terms(config, cohort))))
    assert reply == {"ok": False, "kind": "failed", "reason": "failed at ann (GradingError); the log there says why"}
    assert log_of(site)[-1] == "run run, round 1: failed (GradingError); worker.log says why"
    assert "ann-train-" in caplog.text  # the organisation's own log names the problem


def test_memory_that_runs_out_fails_one_message_and_names_the_settings_alone(
    config: Config, cohort: Cohort, ann: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = train_content(config, cohort, terms(config, cohort))

    def fail(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB. of ann?")

    with monkeypatch.context() as patched:
        patched.setattr("fedrlvr.policy.learner.response_logps", fail)
        patched.setattr("fedrlvr.deployment.site.loaded_model.LoadedModel.check", lambda *_: None)
        reply, _ = ann.reply(header(message_id="m1"), pack(content))
    assert reply["kind"] == "failed"
    assert reply["reason"] == (
        "failed at ann: GPU memory ran out in training; at the site, lower engine.micro_batch_tokens or set "
        "machine.gradient_checkpointing = true; in the run, lower lora.rank or lower sampling.group_size"
    )
    assert "engine.micro_batch_tokens" in log_of(ann)[-1]
    after = trained(ann, content, "m2")
    assert after == trained(answering(ann.org), content, "m3"), "as if the message had not been asked before"
    assert len([line for line in log_of(ann) if line.startswith("loaded")]) == 1, "the worker and its model live on"


def test_more_than_the_limits_allow_is_refused_before_anything_is_loaded(
    config: Config, cohort: Cohort, organisation: Organisations
) -> None:
    site = answering(organisation(limits={"local_steps": 1}))
    reason = refusal(site, train_content(config, cohort, terms(config, cohort)))
    assert re.search(r"ann .* 1 .*limits\.local_steps.* 2$", reason)
    assert site.models == {}


def test_limits_on_problems_hold_once_these_are_known(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")  # 8 to train on, 4 held out
    content = train_content(config, cohort, terms(config, cohort))  # 2 steps x 2 problems
    assert trained(answering(organisation(limits={"least_problems": 4})), content, "m1")
    for least, why in ((5, "the round's steps draw 4"), (9, "this task has fewer")):
        reason = refusal(answering(organisation(limits={"least_problems": least})), content, message_id="m2")
        assert f"no fewer than {least} problems (limits.least_problems), and {why}" in reason
    asks = {"round": 0, "seed": 3, "sampling": config.sampling.model_dump(), "evaluate": {"samples": 2}}
    content["config"] = ConfigRecord({"request": json.dumps(asks)})
    # 4 problems x 2 responses x 8 tokens
    least = answering(organisation(limits={"tokens_per_message": 63, "least_problems": 9}))
    assert "at most 63 tokens sampled" in refusal(least, content, message_type="evaluate", message_id="m3")
    enough = answering(organisation(limits={"tokens_per_message": 64, "least_problems": 9}))
    assert enough.reply(header("evaluate", "m4"), pack(content))[0] == {"ok": True}, "nothing is trained"


@pytest.mark.parametrize(("names", "sources"), [(True, ["bob", "cyd"]), (False, ["main"])])
def test_scores_leave_under_the_names_of_sources_only_if_they_may(
    names: bool, sources: list[str], config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    write_problems(tmp_path / "sites" / "ann" / "problems", ["bob", "cyd"])
    site = answering(organisation(limits={"source_names": names}))
    asks = {"round": 0, "seed": 3, "sampling": config.sampling.model_dump(), "evaluate": {}}
    content = train_content(config, cohort, terms(config, cohort))
    content["config"] = ConfigRecord({"request": json.dumps(asks)})
    _, data = site.reply(header("evaluate"), pack(content))
    reply = unpack(data)
    assert reply["config"] == {"sources": sources}
    assert sum(reply["metrics"]["n"]) == 8  # type: ignore[arg-type]


def test_a_disk_that_is_full_fails_one_message_and_the_next_goes_on(
    config: Config, cohort: Cohort, ann: Answering, organisation: Organisations, tmp_path: Path
) -> None:
    said = terms(config, cohort)
    trained(ann, train_content(config, cohort, said, 1), "m1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    content = train_content(config, cohort, said, 2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        reply, _ = ann.reply(header(message_id="m2"), pack(content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert reply == {"ok": False, "kind": "failed", "reason": "failed at ann (CheckpointError); the log there says why"}
    after = trained(ann, content, "m3")
    shutil.rmtree(ann.org.state / "runs")
    fresh = answering(ann.org)
    trained(fresh, train_content(config, cohort, said, 1), "m1")
    assert trained(fresh, content, "m2") == after
    assert trained(fresh, train_content(config, cohort, said, 1), "m4") != after


def test_the_client_code_is_given_no_terms_and_a_cohort_that_was_checked_once(
    config: Config, cohort: Cohort, ann: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    checked: list[Cohort] = []
    threads: list[int] = []

    class Spy(CohortApp):
        def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
            given.extend(list(message.content) for message in messages)
            return super().__call__(messages, contexts)

    monkeypatch.setattr("fedrlvr.deployment.site.handler.CohortApp", Spy)
    check = Cohort.self_check

    def counted(self: Cohort, seed: int) -> None:
        checked.append(self)
        check(self, seed)

    monkeypatch.setattr(Cohort, "self_check", counted)
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    for number, run_ in enumerate(("a", "b")):
        trained(ann, train_content(config, cohort, terms(config, cohort, run=run_)), f"m{number}")
    assert given == [["config", "arrays"]] * 2
    assert len(checked) == 1
    assert set(threads) == {1}, "engine.threads of site.toml"


def test_runs_of_other_ranks_follow_each_other_on_one_model(config: Config, cohort: Cohort, ann: Answering) -> None:
    content = train_content(config, cohort, terms(config, cohort))
    first = trained(ann, content)
    small = terms(config, cohort, run="small", rank=2, largest=2, alpha=3.0, targets=["q_proj"])
    body = train_content(config, cohort, small)
    assert "its factors are not those of this run's adapters" in refusal(ann, body, message_id="m2")
    seated = ann.models["tiny"].cohort
    assert seated is not None
    assert len(seated.stack.layers) == 2  # one in each of two layers
    other = RecordDict({**content, "terms": terms_record(terms(config, cohort, run="again"))})
    assert trained(ann, other, "m3") == first
    assert [line for line in log_of(ann) if line.startswith("loaded")] == [log_of(ann)[1]]


def test_whether_prompts_go_into_the_template_is_the_runs_own(config: Config, cohort: Cohort, ann: Answering) -> None:
    held = ann._cohort(terms(config, cohort))
    assert held.base.chat is False, "the tiny model has no template"
    tokenizer = held.base.tokenizer
    tokenizer.chat_template = "{{ messages[0].content }}"
    try:
        for name, chat in (("one", "on"), ("two", "off"), ("three", "on")):
            asked = PromptConfig(chat=chat, prefill=name)
            held = ann._cohort(terms(config, cohort, run=name, prompt=asked))
            assert (held.base.chat, held.base.prefill) == (chat == "on", name)
    finally:
        tokenizer.chat_template = None


def test_a_servers_prompt_is_used_but_for_what_the_task_states_itself(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    task = {"name": "jsonl", "path": "problems", "prompt": {"system": "Ours."}, "rewards": "small_runs:parity"}
    server = {
        "instruction": "Theirs.",
        "template": "Q: {{ prompt }}",
        "system": "Theirs.",
        "prefill": "So",
        "stop": ["e"],
    }
    asked = PromptConfig.model_validate(server | {"examples": 2})
    site = answering(organisation(responses=8, tasks={"main": task}, limits={"examples": 2}))
    trained(site, train_content(config, cohort, terms(config, cohort, prompt=asked)))
    (file,) = response_files(site.org.state / "runs" / "run").values()
    responses = read_logged(file)
    for response in responses:
        system, *examples, question = response.prompt.split("\n\n")
        assert (system, len(examples)) == ("Ours.", 2)
        assert re.fullmatch(r"Q: train \d of ann\?\nTheirs\.", question)
        assert all(re.fullmatch(r"Q: train \d of ann\?\nTheirs\.\n.*", example) for example in examples)
        assert not any(example.startswith(question) for example in examples)
        assert response.text.startswith("So")
        assert response.text.count("e") <= 1
        assert response.finished or "e" not in response.text
    assert asked_for(site.org, "main") == ("run", asked)
    assert asked_for(site.org, "other") is None
    votes = train_content(config, cohort, terms(config, cohort, prompt=asked), supervision={"type": "majority"})
    assert re.search(r"prompt\.examples.*supervision\.type", refusal(site, votes, message_id="m2"))
    strict = answering(organisation(tasks={"main": task}))
    refused = train_content(config, cohort, terms(config, cohort, prompt=asked))
    assert re.search(r"limits\.examples", refusal(strict, refused))


def test_without_answers_one_can_be_evaluated_and_vote_but_not_be_graded(
    config: Config, cohort: Cohort, ann: Answering
) -> None:
    rows = ann.org.directory / "problems" / "train.jsonl"
    lines = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    rows.write_text("".join(json.dumps(line | {"answer": ""}) + "\n" for line in lines), "utf-8")
    said = terms(config, cohort)
    asks = {"round": 0, "seed": 3, "sampling": config.sampling.model_dump(), "evaluate": {}}
    content = train_content(config, cohort, said)
    graded = RecordDict(dict(content.items()))
    content["config"] = ConfigRecord({"request": json.dumps(asks)})
    assert ann.reply(header("evaluate"), pack(content))[0] == {"ok": True}
    reply, _ = ann.reply(header(message_id="m2"), pack(graded))
    assert reply["reason"] == "failed at ann (DataError); the log there says why"
    votes = train_content(config, cohort, said, supervision={"type": "majority"})
    assert trained(ann, votes, "m3")


@pytest.mark.parametrize(("labels_from", "place"), [("dataset", "runs/run/ledger.sqlite"), ("desk", "ledger.sqlite")])
def test_labels_lie_with_the_run_and_what_people_answer_beside_it(
    labels_from: str, place: str, config: Config, cohort: Cohort, ann: Answering
) -> None:
    how = {"type": "random", "budget": 1.0, "rest": "masked", "labels_from": labels_from}
    trained(ann, train_content(config, cohort, terms(config, cohort), supervision=how))
    assert [str(path.relative_to(ann.org.state)) for path in ann.org.state.rglob("*.sqlite")] == [place]


def test_the_longest_prompt_is_the_shorter_of_the_runs_and_the_tasks(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    length = max(len(cohort.base.encode(f"train {i} of ann?")) for i in range(8))
    task = {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "rewards": "small_runs:parity"}
    for run_, of_task, of_run in (("a", length - 1, None), ("b", None, length - 1), ("c", length, length - 1)):
        here = task if of_task is None else task | {"max_prompt_tokens": of_task}
        site = answering(organisation(tasks={"main": here}))
        said = terms(config, cohort, run=run_, max_prompt_tokens=of_run)
        reply, _ = site.reply(header(message_id=run_), pack(train_content(config, cohort, said)))
        assert reply["reason"] == "failed at ann (DataError); the log there says why"
    assert trained(
        answering(organisation(tasks={"main": task | {"max_prompt_tokens": length}})),
        train_content(config, cohort, terms(config, cohort, run="d")),
    )


def test_a_model_is_looked_for_beside_site_toml(
    config: Config, cohort: Cohort, organisation: Organisations, model: Path, tmp_path: Path
) -> None:
    give_problems(config, tmp_path / "sites")
    shutil.copytree(model, tmp_path / "sites" / "ann" / "base")
    assert trained(
        answering(organisation(models={"tiny": "base"})), train_content(config, cohort, terms(config, cohort))
    )
