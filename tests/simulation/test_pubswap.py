"""PubSwap in a whole federation: a tiny model, three clients, exchanges over the local grid."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from leaks import Secrets, contents, leaks, searchable
from safetensors.torch import load_file
from small_runs import CLIENTS, Configs, adapter_bytes, exchanges, lines, without_seconds

import fedrlvr
from fedrlvr import coordination as coordination_package
from fedrlvr.client import public_steps
from fedrlvr.client.state import ROUND, ROUND_ADAPTER, ROUND_ANCHOR, ROUND_MOMENTS
from fedrlvr.config import parse_config
from fedrlvr.coordination import Sent
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.learner import Learner
from fedrlvr.rl import LOSSES, Group, Origin
from fedrlvr.server import exchange as exchange_module
from fedrlvr.server.exchange import Exchange
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.tasks.deal import deal
from fedrlvr.wire.messages import CONFIG, nbytes
from fedrlvr.wire.public_messages import (
    EXCHANGE,
    PUBLIC,
    RESPOND,
    RESPONSES,
    SHARE,
    STAMP,
    read_responses,
    responses_record,
)
from fedrlvr.wire.serialization import unpack


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Every message of the runs of a test, in order."""
    seen: list[Message] = []

    class Recording(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            seen.extend([*messages, *replies])
            return replies

    monkeypatch.setattr(run_module, "LocalGrid", Recording)
    return seen


def test_a_rounds_messages_are_those_of_the_design(
    configured: Configs, tmp_path: Path, watching: list[Message]
) -> None:
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, train={"rounds": 1})))
    down = [(m.metadata.message_type, set(m.content)) for m in watching if m.metadata.dst_node_id]
    up = [(m.metadata.message_type, set(m.content)) for m in watching if not m.metadata.dst_node_id]
    kinds = [kind for kind, _ in down if kind != "evaluate"]
    assert kinds == [RESPOND] * 6 + ["train"] * 3
    first, second, last = (records for kind, records in (down[3], down[6], down[9]))
    assert first == {"config", "arrays", PUBLIC}
    assert second - {SHARE} == {"config", PUBLIC}
    assert last - {SHARE} == {"config"}
    assert any(SHARE in records for _, records in down[6:])
    assert up[3][1] == {"metrics", STAMP, RESPONSES}
    assert up[6][1] == {"metrics", STAMP, RESPONSES, EXCHANGE}
    assert up[9][1] == {"metrics", "arrays", EXCHANGE}, "the adapter travels as plain train, and only there"


def test_what_an_exchange_writes_down(configured: Configs, tmp_path: Path, watching: list[Message]) -> None:
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path)))
    before, *rounds = lines(tmp_path / "run")
    assert "exchanges" not in before
    for line in rounds:
        assert [e["exchange"] for e in line["exchanges"]] == [1, 2]
        for exchange in line["exchanges"]:
            assert set(exchange["clients"]) == set(CLIENTS)
            assert exchange["problems"] == 2
            assert 0 <= exchange["unsolved"] <= 1
            assert exchange["pool"] == sum(n["pooled"] for n in exchange["clients"].values())
            for numbers in exchange["clients"].values():
                assert numbers["sent"] == 2 * 4
                assert numbers["correct"] == round(numbers["own_correct"] * 8), "client and server grade alike here"
                assert numbers["swapped_in"] == numbers["offered"], "everything offered is of use"
                assert numbers["refused"] == 0
                if numbers["swapped_in"]:
                    # 2 local steps before the first exchange; then a public and a local one before the second.
                    assert numbers["staleness"] == {1: 2, 2: 4}[exchange["exchange"]]
                    assert numbers["foreign_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
                    assert numbers["foreign_logp"] < 0
    swapped = [n["swapped_in"] for line in rounds for e in line["exchanges"] for n in e["clients"].values()]
    assert sum(swapped) > 0
    # Bytes of exchanges are those of their records, and part of the round's.
    records = [m.content[name] for m in watching for name in (PUBLIC, SHARE, RESPONSES, STAMP) if name in m.content]
    counted = [n for line in rounds for e in line["exchanges"] for n in e["clients"].values()]
    assert sum(n["bytes_up"] + n["bytes_down"] for n in counted) == sum(r.count_bytes() for r in records)
    every = [n for line in [before, *rounds] for n in line["clients"].values()]
    assert sum(n["bytes_up"] + n["bytes_down"] for n in every) == sum(map(nbytes, watching))


@pytest.mark.parametrize("scaled", [True, False])
def test_swapped_groups_are_what_is_trained_on(
    scaled: bool, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group with a foreign response has a gradient, at most half of it correct unless the client had more itself."""
    taken: list[Group] = []
    real = Cohort.learn

    def learn(self: Cohort, groups: dict[str, list[Group]], rates: Any) -> Any:
        for group in (g for client_groups in groups.values() for g in client_groups):
            if any(r.origin is Origin.FOREIGN for r in group.responses):
                taken.append(group)
        return real(self, groups, rates)

    monkeypatch.setattr(Cohort, "learn", learn)
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, train={"scale_by_std": scaled})))
    assert taken
    for group in taken:
        right = sum(r.reward == 1.0 for r in group.responses) / 4
        best = ((1 - right) / right) ** 0.5 if scaled else 1 - right
        assert max(group.advantages) == pytest.approx(best, rel=1e-4)
        foreign = [r for r in group.responses if r.origin is Origin.FOREIGN]
        assert all(r.reward == 1.0 for r in foreign)
        assert all(len(r.logps) == len(r.token_ids) for r in foreign)
        assert sum(r.reward == 1.0 for r in group.responses) <= 2
        assert all(a > 0 for r, a in zip(group.responses, group.advantages, strict=True) if r.reward == 1.0)


@pytest.mark.parametrize(
    "coordination",
    [
        {"swap": "random"},
        {"swap": "full"},
        {"ratio": "behaviour"},
        {"ratio": "truncated"},
        {"ratio": "shaped", "gamma": 0.2},
        {"swap": "none"},
        {"public_steps": 3},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_every_rule_and_ratio_runs_and_gives_an_adapter_of_its_own(
    coordination: dict[str, Any], configured: Configs, tmp_path: Path, watching: list[Message]
) -> None:
    ends = {}
    for name, settings in (("plain", {}), ("other", coordination)):
        tree = configured(tmp_path / name, **exchanges(tmp_path, coordination=settings, train={"rounds": 1}))
        fedrlvr.run(tree)
        ends[name] = adapter_bytes(tmp_path / name)
        (tensors,) = (load_file(path) for path in (tmp_path / name / "adapter").glob("*.safetensors"))
        assert all(torch.isfinite(t).all() for t in tensors.values())
        if name == "plain":
            watching.clear()
    assert ends["plain"] != ends["other"]
    logps = any("logps" in m.content[RESPONSES] for m in watching if RESPONSES in m.content)  # type: ignore[operator]
    assert logps == (coordination.get("ratio") in ("behaviour", "truncated"))
    if coordination.get("swap") == "none":
        assert not any(name in m.content for m in watching for name in (RESPONSES, SHARE))
        numbers = lines(tmp_path / "other")[1]["exchanges"][0]["clients"]["ann"]
        assert numbers["tokens_trained"] > 0


@pytest.mark.parametrize(
    ("coordination", "used"),
    [
        ({"ratio": "truncated"}, (0.5, None)),
        ({"ratio": "shaped", "gamma": 0.3}, (0.5, 0.3)),
    ],
)
def test_cap_and_gamma_are_those_of_the_config(
    coordination: dict[str, Any],
    used: tuple[float, float | None],
    configured: Configs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[tuple[float, float | None]] = set()

    def reference(rule: Any, *, cap: float, gamma: float | None, **rest: Any) -> Any:
        seen.add((cap, gamma))
        return coordination_package.reference(rule, cap=cap, gamma=gamma, **rest)

    monkeypatch.setattr(public_steps, "reference", reference)
    changes = exchanges(tmp_path, coordination=coordination, train={"rounds": 1, "ratio_cap": 0.5})
    fedrlvr.run(configured(tmp_path / "run", **changes))
    assert seen == {used}


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "cross_entropy"])  # of given responses
@pytest.mark.parametrize("ratio", ["local_old", "truncated", "shaped"])
def test_every_loss_takes_foreign_responses(loss: str, ratio: str, configured: Configs, tmp_path: Path) -> None:
    changes = exchanges(tmp_path, coordination={"ratio": ratio}, train={"rounds": 1, "loss": loss, "kl_beta": 0.05})
    fedrlvr.run(configured(tmp_path / "run", **changes))
    numbers = [n for e in lines(tmp_path / "run")[1]["exchanges"] for n in e["clients"].values()]
    assert sum(n["swapped_in"] for n in numbers) > 0


def test_equal_policies_have_a_behaviour_ratio_of_1(configured: Configs, tmp_path: Path) -> None:
    """With a vanishing learning rate all clients have one policy, so sender's and receiver's log-probs agree."""
    changes = exchanges(tmp_path, coordination={"ratio": "behaviour"}, train={"rounds": 1, "learning_rate": 1e-12})
    fedrlvr.run(configured(tmp_path / "run", **changes))
    numbers = [n for e in lines(tmp_path / "run")[1]["exchanges"] for n in e["clients"].values() if n["swapped_in"]]
    assert numbers
    for report in numbers:
        assert report["foreign_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert report["foreign_ratio_max"] == pytest.approx(1.0, abs=1e-4)
        assert report["foreign_clip_fraction"] == 0.0


def test_together_with_fgrpo_clients_are_weighed_by_their_private_rewards(configured: Configs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, aggregation={"weights": "fgrpo"})))
    _, first, second = lines(tmp_path / "run")
    gains = {}
    for client in CLIENTS:
        before, after = (line["clients"][client]["reward"] for line in (first, second))
        assert first["clients"][client]["gain"] == 0.0
        gains[client] = max(-1.0, min(1.0, (after - before) / before))
        assert second["clients"][client]["gain"] == pytest.approx(gains[client])
        assert "public_pass@1" in second["clients"][client]
    raw = {client: math.exp(gain) for client, gain in gains.items()}
    held = {client: second["clients"][client]["num-examples"] for client in CLIENTS}
    total = sum(raw[client] * held[client] for client in CLIENTS)
    for client in CLIENTS:
        assert second["clients"][client]["weight"] == pytest.approx(raw[client] * held[client] / total)
    assert sum(n["swapped_in"] for e in second["exchanges"] for n in e["clients"].values()) > 0


def test_one_client_alone_trades_nothing(configured: Configs, tmp_path: Path, watching: list[Message]) -> None:
    federation = {"clients": ["ann"]}
    fedrlvr.run(configured(tmp_path / "swap", **exchanges(tmp_path, federation=federation)))
    assert not any(name in m.content for m in watching for name in (RESPONSES, SHARE))
    fedrlvr.run(
        configured(tmp_path / "none", **exchanges(tmp_path, federation=federation, coordination={"swap": "none"}))
    )
    assert adapter_bytes(tmp_path / "swap") == adapter_bytes(tmp_path / "none")


def test_a_client_that_answers_nothing_stops_nobody(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            for reply in replies:
                if reply.metadata.src_node_id == 1:
                    for name in (RESPONSES, STAMP, EXCHANGE):
                        reply.content.pop(name, None)
            return replies

    monkeypatch.setattr(run_module, "LocalGrid", Silent)
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path)))
    for line in lines(tmp_path / "run")[1:]:
        for exchange in line["exchanges"]:
            assert exchange["clients"]["ann"]["sent"] == 0
            assert exchange["clients"]["ann"]["dropped_unreadable"] == 1
            assert exchange["clients"]["bob"]["sent"] == 8


def test_a_client_left_out_is_told_so_in_the_next_exchange(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OtherTokens(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            for reply in replies:
                if reply.metadata.src_node_id == 2 and STAMP in reply.content:
                    stamp = json.loads(str(reply.content.config_records[STAMP]["stamp"]))
                    reply.content.config_records[STAMP]["stamp"] = json.dumps({**stamp, "tokenizer": "other"})
            return replies

    monkeypatch.setattr(run_module, "LocalGrid", OtherTokens)
    with caplog.at_level("WARNING", "fedrlvr.client"):
        fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, train={"rounds": 1})))
    (reason,) = [r.getMessage() for r in caplog.records if "the server says" in r.getMessage()]
    assert reason.startswith("bob: the server says: your responses of exchange 1 of round 1 were left out: tokenizer")
    for exchange in lines(tmp_path / "run")[1]["exchanges"]:
        bob = exchange["clients"]["bob"]
        assert (bob["dropped_stamp"], bob["pooled"], bob["swapped_in"]) == (8, 0, 0)


def beyond_the_vocabulary(sent: Sent) -> Sent:
    return replace(sent, token_ids=(60_000,) * len(sent.token_ids))


def with_a_token_that_no_text_shows(sent: Sent) -> Sent:
    """Still correct to the grader: its end token stands in front as well."""
    return replace(sent, token_ids=(sent.token_ids[-1], *sent.token_ids))


@pytest.mark.parametrize("spoil", [beyond_the_vocabulary, with_a_token_that_no_text_shows])
def test_a_share_is_checked_again_by_who_gets_it(
    spoil: Callable[[Sent], Sent], configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that deals out tokens that do not exist, or that no reader sees, has them refused."""
    changed: list[int] = []

    class Cheating(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            messages = list(messages)
            for message in messages:
                if SHARE in message.content:
                    share = read_responses(message.content[SHARE], most=100, max_tokens=100, logps=False)
                    changed.append(len(share))
                    message.content[SHARE] = responses_record([spoil(sent) for sent in share], 1 << 16)
            return super().send_and_receive(messages, timeout=timeout)

    monkeypatch.setattr(run_module, "LocalGrid", Cheating)
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path)))
    numbers = [n for line in lines(tmp_path / "run")[1:] for e in line["exchanges"] for n in e["clients"].values()]
    assert sum(changed) > 0
    assert sum(n["refused"] for n in numbers) == sum(changed)
    assert sum(n["swapped_in"] for n in numbers) == 0


def test_an_incorrect_response_is_refused_by_who_gets_it(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose grader calls everything correct deals out what the receivers' graders do not."""
    taken: list[float | None] = []
    real = Cohort.learn

    def learn(self: Cohort, groups: dict[str, list[Group]], rates: Any) -> Any:
        responses = [r for client_groups in groups.values() for group in client_groups for r in group.responses]
        taken.extend(r.reward for r in responses if r.origin is Origin.FOREIGN)
        return real(self, groups, rates)

    monkeypatch.setattr(Cohort, "learn", learn)
    monkeypatch.setattr(Exchange, "_grade", lambda self, response: (True, None))
    # Then every group has four of four in the server's eyes, and needs nothing: so the share is asked for all the same.
    monkeypatch.setattr(exchange_module, "wanted", lambda correct, group, rule: group)
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path)))
    numbers = [n for line in lines(tmp_path / "run")[1:] for e in line["exchanges"] for n in e["clients"].values()]
    assert sum(n["refused"] for n in numbers) > 0
    assert taken
    assert set(taken) == {1.0}


def test_every_swap_and_every_sampling_has_random_numbers_of_its_own(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps: list[float] = []
    samples: list[int] = []
    real = Cohort.sample

    def swap(rewards: Any, pool: Any, *, rule: Any, rng: random.Random) -> Any:
        swaps.append(random.Random(str(rng.getstate())).random())
        return coordination_package.swap(rewards, pool, rule=rule, rng=rng)

    def sample(self: Cohort, prompts: Any, decoding: Any, seeds: dict[str, int], *states: Any) -> Any:
        samples.extend(seeds.values())
        return real(self, prompts, decoding, seeds, *states)

    monkeypatch.setattr(public_steps, "swap", swap)
    monkeypatch.setattr(Cohort, "sample", sample)
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, evaluate={"every": 0})))
    assert len(swaps) == len(set(swaps)) == 2 * 2 * 3
    # The start-up check of two adapters and two evaluations use the same numbers on purpose: 1 and 3.
    assert len(samples) == 2 + 2 * 3 + 2 * 3 * (3 + 2)
    assert len(set(samples)) == 1 + 3 + 2 * 3 * (3 + 2)


def test_public_responses_are_drawn_from_the_whole_distribution(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local steps keep to the likeliest token here; a cut would change what the log-probs of public responses mean."""
    drawn: list[tuple[int, float, int, int]] = []
    real = Cohort.sample

    def sample(self: Cohort, prompts: Any, decoding: Any, seeds: Any, *states: Any) -> Any:
        result = real(self, prompts, decoding, seeds, *states)
        group = next(iter(result.values()))[0]
        different = len({tuple(r.token_ids) for r in group})
        drawn.append((decoding.responses, decoding.temperature, decoding.top_k, different))
        return result

    monkeypatch.setattr(Cohort, "sample", sample)
    sampling = {"top_k": 1, "top_p": 0.5, "temperature": 0.9}
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, sampling=sampling, train={"rounds": 1})))
    groups = [call for call in drawn if call[:2] == (4, 0.9)]
    # Two local steps, an exchange, a local step, an exchange.
    assert [top_k for _, _, top_k, _ in groups] == [1, 1, 0, 1, 0]
    assert [different > 1 for _, _, _, different in groups] == [False, False, True, False, True]


def test_the_optimizer_and_the_anchor_go_on_through_a_round(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, list[torch.Tensor], list[torch.Tensor]]] = []
    real = Learner.step

    def step(self: Learner, *args: Any) -> Any:
        seated = [p.detach().clone() for p in self.stack.parameters()]
        begun.append((int(self.optimizer.steps[0, 0]), self.anchors, seated))
        return real(self, *args)

    monkeypatch.setattr(Learner, "step", step)
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, train={"proximal_mu": 0.1, "rounds": 2})))
    del begun[0]  # the start-up check's own step
    # A round: local, local | public, local | public. Moments are reset at the synchronisation alone.
    assert [steps for steps, _, _ in begun] == [0, 1, 2, 3, 4] * 2
    for round_ in (begun[:5], begun[5:]):
        start = round_[0][2]
        for _, anchors, _ in round_:
            assert all(torch.equal(a, s) for a, s in zip(anchors, start, strict=True))
        assert not all(torch.equal(a, s) for a, s in zip(round_[4][2], start, strict=True))


def test_nothing_of_a_round_is_left_in_a_memory_after_it(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: set[str] = set()

    class Looking(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            replies = super().send_and_receive(messages, timeout=timeout)
            inside.update(name for context in self.contexts.values() for name in context.state)
            return replies

    monkeypatch.setattr(run_module, "LocalGrid", Looking)
    fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path, train={"proximal_mu": 0.1})))
    assert inside == {"fedrlvr", ROUND, ROUND_ADAPTER, ROUND_ANCHOR, ROUND_MOMENTS}
    for memory in (tmp_path / "run" / "clients").rglob("memory.packed"):
        assert set(unpack(memory.read_bytes())) <= {"fedrlvr"}


def test_one_client_after_another_gives_the_same(configured: Configs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path / "cohort", **exchanges(tmp_path)))
    fedrlvr.run(configured(tmp_path / "apart", **exchanges(tmp_path, engine={"cohort": False})))
    together, apart = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("cohort", "apart")
    )
    for name, tensor in together.items():
        assert torch.allclose(tensor, apart[name], atol=1e-4), name
    cohort_lines, apart_lines = (without_seconds(tmp_path / name) for name in ("cohort", "apart"))
    for line, other in zip(cohort_lines[1:], apart_lines[1:], strict=True):
        for a, b in zip(line["exchanges"], other["exchanges"], strict=True):
            assert (a["pool"], a["unsolved"]) == (b["pool"], b["unsolved"])


def test_a_message_in_the_middle_of_no_round_is_refused(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            self.contexts[2].state = RecordDict()
            return super().send_and_receive(messages, timeout=timeout)

    monkeypatch.setattr(run_module, "LocalGrid", Forgetful)
    with pytest.raises(fedrlvr.errors.MessageError, match="bob: round 1: a request without an adapter"):
        fedrlvr.run(configured(tmp_path / "run", **exchanges(tmp_path)))


def test_public_responses_travel_and_nothing_private_does(
    configured: Configs, tmp_path: Path, watching: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = configured(tmp_path / "run", **exchanges(tmp_path, sampling={"max_new_tokens": 16}))
    public = {problem.prompt for problem in deal(parse_config(tree)).public}
    private, shared = Secrets(), Secrets()
    asked: list[list[list[int]]] = []
    real = Cohort.sample

    def sample(self: Cohort, prompts: Any, *args: Any) -> Any:
        drawn = real(self, prompts, *args)
        for client, groups in drawn.items():
            for ids, responses in zip(prompts[client], groups, strict=True):
                text = self.base.decode(list(ids))
                where = shared if text.strip() in public else private
                where.ids += [list(r.token_ids) for r in responses]
        asked.append([list(ids) for client_prompts in prompts.values() for ids in client_prompts])
        return drawn

    monkeypatch.setattr(Cohort, "sample", sample)
    fedrlvr.run(tree)
    assert len(shared.ids) == 2 * 2 * 3 * 2 * 4  # rounds, exchanges, clients, problems, responses
    assert len(private.ids) > 2 * 3 * 3 * 2 * 4
    known = {tuple(ids) for ids in shared.ids}
    private.ids = [ids for ids in private.ids if tuple(ids) not in known]
    travelled = searchable(contents(watching))
    assert leaks(private, travelled) == []
    shared.ids = [ids for ids in shared.ids if len(ids) >= 14]
    assert leaks(shared, travelled), "the detector sees responses that do travel"
    down = "".join(str(m.content.config_records[PUBLIC]["problems"]) for m in watching if PUBLIC in m.content)
    assert any(prompt in down for prompt in public)
    requests = "".join(str(m.content.config_records[CONFIG]) for m in watching if CONFIG in m.content)
    assert not any(prompt in requests for prompt in public)
