"""The client's side: requests it cannot read are refused, and it needs nobody else to do its work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import make_request
from fakes import contexts
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from small_runs import Configs

from fedrlvr.adapter import Adapter
from fedrlvr.client.app import CohortApp
from fedrlvr.client.state import MEMORY, OWN_ADAPTER
from fedrlvr.config import Config, parse_config
from fedrlvr.errors import AdapterError, MessageError
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.observer import Observer
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.deal import deal
from fedrlvr.wire.messages import (
    EvaluateRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    content,
    nbytes,
    read_scores,
)

Made = Callable[..., tuple[LocalGrid, Config, Adapter]]


@pytest.fixture(scope="module")
def grid_of(configured: Configs) -> Made:
    """A grid over all three clients' code, or over those of some nodes alone."""
    torch.set_num_threads(1)

    def make(*nodes: int, **changes: dict[str, object]) -> tuple[LocalGrid, Config, Adapter]:
        config = parse_config(configured(None, **changes))
        cohort = Cohort(load_base(config.model), config.lora, config.engine)
        initial = cohort.fresh_adapter(1)
        sites: dict[int, ClientData] = dict(enumerate(deal(config).clients, start=1))
        present = {node: sites[node] for node in nodes or sites}
        return LocalGrid(CohortApp(cohort, present, initial, Observer()), contexts(present)), config, initial

    return make


def with_text(text: object) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"request": text})})  # type: ignore[dict-item]


def test_a_request_that_cannot_be_read_is_refused(grid_of: Made) -> None:
    grid, config, _ = grid_of()
    good = json.loads(make_request(config).model_dump_json())
    cases = [
        (RecordDict(), "without a usable request"),
        (with_text(3), "without a usable request"),
        (with_text(" " * 70_000 + "{}"), "without a usable request"),
        (with_text("{"), "cannot be used"),
        (with_text("[" * 30_000), "cannot be used"),
        (with_text("null"), "cannot be used"),
        (with_text(json.dumps({**good, "colour": 1})), "colour"),
        (with_text(json.dumps({**good, "round": -1})), "round"),
        (with_text(json.dumps({**good, "steps": "many"})), "steps"),
        (with_text(json.dumps({**good, "sampling": {**good["sampling"], "group_size": 1}})), "sampling.group_size"),
        (with_text(json.dumps({**good, "train": {**good["train"], "learning_rate": 1e999}})), "train.learning_rate"),
        (with_text(json.dumps({**good, "supervision": {"type": "prophet"}})), "supervision"),
        (
            with_text(
                json.dumps(
                    {**good, "train": {**good["train"], "dynamic_sampling": 1}, "supervision": {"type": "random"}}
                )
            ),
            "dynamic_sampling",
        ),
        (with_text(json.dumps({k: v for k, v in good.items() if k != "seed"})), "seed"),
        (content(make_request(config)), "without an adapter"),
    ]
    for body, word in cases:
        with pytest.raises(MessageError) as caught:
            grid.push_messages([Message(body, 1, "train")])
        assert word in str(caught.value)
        assert len(str(caught.value)) < 1000, "a stranger's text must not fill the log"


def test_a_message_of_another_type_is_refused(grid_of: Made) -> None:
    grid, config, _ = grid_of()
    for kind in ("query", "train.more", "evaluate.all"):
        with pytest.raises(MessageError, match="are not answered"):
            grid.push_messages([Message(content(make_request(config)), 1, kind)])
    with pytest.raises(MessageError, match="steps"):  # a train request is no evaluate request
        grid.push_messages([Message(content(make_request(config)), 1, "evaluate")])


def test_an_adapter_of_another_model_is_refused_by_the_client(grid_of: Made) -> None:
    grid, config, initial = grid_of()
    tensors = dict(initial.tensors())
    name = next(iter(tensors))
    for bad in (torch.full_like(tensors[name], torch.nan), torch.zeros(1, 1)):
        arrays = ArrayRecord({**tensors, name: bad})
        with pytest.raises(AdapterError, match="adapter sent to bob in round 1"):
            grid.push_messages([Message(content(make_request(config), arrays=arrays), 2, "train")])


def own_adapter(context: Context, initial: Adapter) -> Adapter:
    return arrays_to_adapter(context.state[OWN_ADAPTER], initial, place="own")  # type: ignore[arg-type]


def test_what_a_client_does_depends_on_no_other_client(grid_of: Made) -> None:
    """Bob among three and Bob alone: the same draws, samples, rewards, scores and memory; his adapter to rounding."""
    replies, states, adapters = {}, {}, {}
    for who in ((1, 2, 3), (2,)):
        grid, config, initial = grid_of(*who)
        for round_ in (1, 2):
            request = make_request(config, round=round_, own_adapter=True)
            answers = grid.send_and_receive([Message(content(request), node, "train") for node in who])
        bob = next(reply for reply in answers if reply.metadata.src_node_id == 2)
        evaluate = EvaluateRequest(
            round=2, seed=3, own_adapter=True, sampling=config.sampling, evaluate=config.evaluate
        )
        scores = grid.send_and_receive([Message(content(evaluate), node, "evaluate") for node in who])
        judged = next(reply for reply in scores if reply.metadata.src_node_id == 2)
        replies[who] = (dict(bob.content.metric_records["metrics"]), read_scores(judged, place="bob"))
        states[who] = dict(grid.contexts[2].state.config_records[MEMORY])
        adapters[who] = own_adapter(grid.contexts[2], initial)
    (many, many_scores), (alone, alone_scores) = replies.values()
    assert many_scores == alone_scores
    assert [*states.values()] == [{"cursor": 8, "steps": 4}] * 2
    exact = ("num-examples", "reward", "pass@1", "zero_variance_groups", "tokens_sampled", "tokens_trained")
    assert {key: many[key] for key in exact} == {key: alone[key] for key in exact}
    for key in ("loss", "grad_norm", "kl_to_base"):
        assert many[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-5)
    moved = 0.0
    for (name, a), (_, b), (_, start) in zip(
        *(adapters[who].tensors() for who in adapters), initial.tensors(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
        moved = max(moved, float((a - start).abs().max()))
    assert moved > 1e-2


def test_the_arm_local_keeps_its_adapter_and_answers_with_numbers_alone(grid_of: Made) -> None:
    grid, config, initial = grid_of()
    request = make_request(config, own_adapter=True)
    messages = [Message(content(request), node, "train") for node in (1, 2)]
    for reply in grid.send_and_receive(messages):
        assert list(reply.content) == ["metrics"]
    assert OWN_ADAPTER in grid.contexts[1].state
    assert OWN_ADAPTER not in grid.contexts[3].state, "a client that was not asked has trained"
    before = own_adapter(grid.contexts[1], initial)
    list(grid.send_and_receive([Message(content(make_request(config, own_adapter=True, round=2)), 1, "train")]))
    after = own_adapter(grid.contexts[1], initial)
    assert any(not torch.equal(a, b) for (_, a), (_, b) in zip(before.tensors(), after.tensors(), strict=True))


def test_clients_asked_different_things_at_once_are_each_answered(grid_of: Made) -> None:
    grid, config, initial = grid_of()
    arrays = adapter_to_arrays(initial)
    evaluate = EvaluateRequest(round=0, seed=3, sampling=config.sampling, evaluate=config.evaluate)
    messages = [
        Message(content(make_request(config), arrays=arrays), 3, "train"),
        Message(content(evaluate, arrays=arrays), 1, "evaluate"),
        Message(content(make_request(config, steps=1), arrays=arrays), 2, "train"),
    ]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 2]
    assert [sorted(reply.content) for reply in replies] == [
        ["arrays", "metrics"],
        ["config", "metrics"],
        ["arrays", "metrics"],
    ]
    tokens = [reply.content.metric_records["metrics"].get("tokens_sampled") for reply in replies]
    assert tokens[0] > tokens[2]  # type: ignore[operator]  # two steps against one


def test_a_client_with_nothing_held_out_is_evaluated_on_nothing(grid_of: Made) -> None:
    grid, config, initial = grid_of()
    app = grid._handler
    assert isinstance(app, CohortApp)
    app.clients[2] = replace(app.clients[2], data=replace(app.clients[2].data, test=[]))
    request = EvaluateRequest(round=0, seed=3, sampling=config.sampling, evaluate=config.evaluate)
    arrays = adapter_to_arrays(initial)
    replies = list(
        grid.send_and_receive([Message(content(request, arrays=arrays), node, "evaluate") for node in (1, 2, 3)])
    )
    assert [[s.n for s in read_scores(reply, place="one")] for reply in replies] == [[4], [], [4]]
    assert nbytes(replies[0]) > nbytes(replies[1]) > 0


def test_a_problem_is_drawn_once_before_any_is_drawn_again(configured: Configs) -> None:
    site = deal(parse_config(configured(None))).clients[0]
    first = [problem.id for problem in site.draw(0, 8, seed=1)]
    second = [problem.id for problem in site.draw(8, 8, seed=1)]
    assert sorted(first) == sorted(second) == sorted(problem.id for problem in site.train)
    assert first != second
    assert [problem.id for problem in site.draw(5, 6, seed=1)] == (first + second)[5:11]
    assert [problem.id for problem in site.draw(0, 8, seed=2)] != first
    assert site.draw(0, 0, seed=1) == []


def test_what_moments_are_kept_is_what_the_next_round_starts_from(grid_of: Made, tmp_path: Path) -> None:
    """Adam's second step after kept moments is not its first: the run differs from one that resets them."""
    ends = {}
    for kind in ("reset", "keep"):
        grid, config, initial = grid_of(2, train={"optimizer_state": kind, "local_steps": 1, "problems_per_step": 2})
        for round_ in (1, 2):
            request = make_request(config, round=round_, own_adapter=True, steps=1)
            list(grid.send_and_receive([Message(content(request), 2, "train")]))
            ends[kind, round_] = own_adapter(grid.contexts[2], initial)
        assert ("fedrlvr.moments" in grid.contexts[2].state) == (kind == "keep")

    def equal(adapter: Adapter, other: Adapter) -> bool:
        return all(torch.equal(a, b) for (_, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True))

    assert equal(ends["reset", 1], ends["keep", 1])
    assert not equal(ends["reset", 2], ends["keep", 2])
