"""Groups with other clients' responses: their numbers, their weights and shaping, and whom they must not disturb."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from models import group_of, moved_adapter, numbers_of, tiny_cohort
from torch import Tensor

from fedrlvr.config import EngineConfig, SamplingConfig, TrainConfig
from fedrlvr.coordination import reference
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.learner import StepStats
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import LOSSES, Group, Origin, Response, normaliser, response_losses

PROMPTS = ["1 + 1 =", "What is 12 + 345?", "9 - 4"]
ADVANTAGES = [[1.5, -1.0, -0.5], [0.4, 0.3, -0.7], [0.7, 0.4, -1.1]]
SAMPLING = SamplingConfig(group_size=3, max_new_tokens=10, temperature=0.8)
TRAIN = TrainConfig(max_grad_norm=1e9, clip_low=0.1, clip_high=0.1)
SEEDS = {"a": 2, "b": 3}
FOREIGN = [(0, 0), (2, 1)]
"""Group and slot of the responses that client a has from others: both of a positive advantage, as correct ones have."""

Edit = Callable[[Response], None]


def seated(directory: Path, names: Sequence[str], train: TrainConfig = TRAIN, **engine: Any) -> Cohort:
    """Clients with adapters of their own, ready to train."""
    cohort = tiny_cohort(directory, engine=EngineConfig(**engine))
    cohort.seat({name: moved_adapter(cohort, SEEDS[name]) for name in names})
    cohort.begin_training(train, SAMPLING)
    return cohort


def drawn_by(directory: Path, adapter: int, seed: int) -> tuple[list[list[int]], list[list[Response]]]:
    """Prompts and the responses of a policy that is none of the clients' own, cut to at most 10, 9, 8, ... 2 tokens."""
    cohort = tiny_cohort(directory)
    cohort.seat({"x": moved_adapter(cohort, adapter, std=0.15)})
    ids = [cohort.base.encode(prompt) for prompt in PROMPTS]
    drawn = cohort.sample({"x": ids}, Decoding.of(SAMPLING), {"x": seed})["x"]
    for place, response in enumerate(response for group in drawn for response in group):
        response.token_ids, response.logps = response.token_ids[: 10 - place], response.logps[: 10 - place]
    return ids, drawn


def groups_of(
    directory: Path, *, foreign: Edit | None, places: Sequence[tuple[int, int]] = FOREIGN, seed: int = 3
) -> list[Group]:
    """Three groups; where `foreign` is given, others' responses stand in some slots, after it has edited them."""
    ids, drawn = drawn_by(directory, 2, seed)
    _, others = drawn_by(directory, 9, seed + 1)
    if foreign:
        for group, slot in places:
            drawn[group][slot] = others[group][slot]
            drawn[group][slot].origin = Origin.FOREIGN
            foreign(drawn[group][slot])
    return [group_of(*parts) for parts in zip(ids, drawn, ADVANTAGES, strict=True)]


def as_they_are(_: Response) -> None:
    """The ratio `behaviour`: log-probs of the sender, nothing else."""


def weighed(response: Response) -> None:
    """A weight of its own for each token."""
    response.weights = [0.5 + 0.3 * i for i in range(len(response.token_ids))]


def weighed_zero(response: Response) -> None:
    response.weights = [0.0] * len(response.token_ids)


def shaped(response: Response) -> None:
    made = reference("shaped", tokens=len(response.token_ids))
    response.logps, response.shaping = made.behaviour_logps, made.shaping


def one_of_each(response: Response) -> None:
    (weighed if len(response.token_ids) % 2 else shaped)(response)


def logps_alone(
    cohort: Cohort, prompt_ids: Sequence[int], token_ids: Sequence[int], *, adapters: bool = True
) -> Tensor:
    """One response of the only seated client by itself, unpadded."""
    cohort.stack.enabled = adapters
    logits = cohort.base.model(torch.tensor([[*prompt_ids, *token_ids]])).logits
    cohort.stack.enabled = True
    logps = torch.log_softmax(logits[0, len(prompt_ids) - 1 : -1] / SAMPLING.temperature, dim=-1)
    return logps.gather(1, torch.tensor([list(token_ids)]).T).squeeze(1)


def gradients(cohort: Cohort, row: int = 0) -> list[Tensor]:
    """Each factor's gradient of one client as the last step left it."""
    return [p.grad[row].clone() for p in cohort.stack.parameters() if p.grad is not None]


def stepped(
    directory: Path, groups: Mapping[str, list[Group]], train: TrainConfig = TRAIN, **engine: Any
) -> tuple[Cohort, dict[str, StepStats]]:
    """One step at learning rate 0, for its gradient."""
    cohort = seated(directory, list(groups), train, **engine)
    return cohort, cohort.learn(groups, dict.fromkeys(groups, 0.0))


def assert_same(gradients: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    """Up to a part of the largest entry of each factor: the same terms are added in another order."""
    assert len(gradients) == len(expected) > 0
    for gradient, other in zip(gradients, expected, strict=True):
        assert float(other.abs().max()) > 0
        assert float((gradient - other).abs().max()) < tolerance * float(other.abs().max())


def differ(gradients: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return any(
        float((gradient - other).abs().max()) > 1e-2 * float(other.abs().max())
        for gradient, other in zip(gradients, others, strict=True)
    )


@pytest.mark.parametrize("edit", [as_they_are, shaped, weighed])
def test_the_numbers_of_foreign_responses_are_theirs_alone(edit: Edit, llama: Path) -> None:
    groups = groups_of(llama, foreign=edit)
    cohort, stats = stepped(llama, {"a": groups})
    ratios = []
    with torch.no_grad():
        for group, slot in FOREIGN:
            response = groups[group].responses[slot]
            logps = logps_alone(cohort, groups[group].prompt_ids, response.token_ids)
            p = logps.exp()
            ratios.append(p / (p + 0.1) if edit is shaped else p / torch.tensor(response.logps).exp())
    flat = torch.cat(ratios)
    clipped = int((flat > 1.1).sum())  # both have a positive advantage
    result = stats["a"].foreign
    assert result is not None
    assert result.tokens == len(flat)
    assert result.mean == pytest.approx(float(flat.mean()), rel=1e-4)
    assert result.largest == pytest.approx(float(flat.max()), rel=1e-4)
    assert result.clipped == clipped / len(flat)
    assert (clipped > 0) == (edit is not shaped)
    # A client's numbers count them among all.
    assert stats["a"].ratios.tokens == sum(len(r.token_ids) for group in groups for r in group.responses)
    assert stats["a"].ratios.tokens > result.tokens
    assert stats["a"].ratios.largest >= result.largest
    assert stats["a"].ratios.mean != pytest.approx(result.mean, rel=1e-2)


def test_without_foreign_responses_there_are_no_numbers_of_them(llama: Path) -> None:
    _, stats = stepped(llama, {"a": groups_of(llama, foreign=None)})
    assert stats["a"].foreign is None
    assert stats["a"].ratios.tokens > 0


def test_foreign_responses_that_are_not_trained_have_no_numbers(llama: Path) -> None:
    """Those of a group that a full swap made all correct: no advantage, so they are skipped unless a KL term counts."""
    groups = groups_of(llama, foreign=as_they_are)
    for group, _ in FOREIGN:
        groups[group].advantages = [0.0] * 3
    assert stepped(llama, {"a": groups})[1]["a"].foreign is None
    _, stats = stepped(llama, {"a": groups}, TrainConfig(kl_beta=0.1))
    assert stats["a"].foreign is not None
    tokens = sum(len(groups[group].responses[slot].token_ids) for group, slot in FOREIGN)
    assert (stats["a"].foreign.tokens, stats["a"].foreign.clipped) == (tokens, 0.0)


def test_rescored_by_the_receiver_the_foreign_ratio_is_one(llama: Path) -> None:
    """What `local_old` begins with, and `behaviour` between equal policies."""
    groups = groups_of(llama, foreign=as_they_are)
    cohort = seated(llama, ["a"])
    responses = [[r for r in group.responses if r.origin is Origin.FOREIGN] for group in groups]
    before = [list(r.logps) for group in groups for r in group.responses if r.origin is Origin.OWN]
    cohort.rescore({"a": [group.prompt_ids for group in groups]}, {"a": responses})
    assert [list(r.logps) for group in groups for r in group.responses if r.origin is Origin.OWN] == before
    result = cohort.learn({"a": groups}, {"a": 0.0})["a"].foreign
    assert result is not None
    assert (result.mean, result.largest) == (pytest.approx(1.0, abs=1e-5), pytest.approx(1.0, abs=1e-5))
    assert result.clipped == 0.0


@pytest.mark.parametrize("kl_beta", [0.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_zero_are_advantages_of_zero(loss: Any, kl_beta: float, llama: Path) -> None:
    """The normaliser still counts such a response, and so does the KL term."""
    train = TrainConfig(loss=loss, kl_beta=kl_beta, max_grad_norm=1e9)
    weightless, stats = stepped(llama, {"a": groups_of(llama, foreign=weighed_zero)}, train)
    groups = groups_of(llama, foreign=as_they_are)
    plain, _ = stepped(llama, {"a": groups}, train)
    for group, slot in FOREIGN:
        groups[group].advantages[slot] = 0.0
    zero, zero_stats = stepped(llama, {"a": groups}, train)
    assert_same(gradients(weightless), gradients(zero))
    assert differ(gradients(weightless), gradients(plain))
    assert stats["a"].loss == pytest.approx(zero_stats["a"].loss, abs=1e-6)


def test_foreign_tokens_of_weight_zero_count_in_the_normaliser(llama: Path) -> None:
    """Under `dapo`: the gradient of the group without them, times the tokens without them over those with them."""
    groups = groups_of(llama, foreign=weighed_zero)
    weightless, _ = stepped(llama, {"a": groups}, TrainConfig(loss="dapo", max_grad_norm=1e9))
    every = sum(len(r.token_ids) for group in groups for r in group.responses)
    for group, slot in FOREIGN:
        del groups[group].responses[slot], groups[group].advantages[slot]
    kept = sum(len(r.token_ids) for group in groups for r in group.responses)
    without, _ = stepped(llama, {"a": groups}, TrainConfig(loss="dapo", max_grad_norm=1e9))
    assert kept < every
    assert_same(gradients(weightless), [gradient * kept / every for gradient in gradients(without)])


@pytest.mark.parametrize("kl_beta", [0.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_of_weighed_and_shaped_responses_are_those_of_autograd(
    loss: Any, kl_beta: float, llama: Path
) -> None:
    """Every response on its own through the model, all of them in `response_losses`."""
    train = TrainConfig(loss=loss, kl_beta=kl_beta, max_grad_norm=1e9, clip_low=0.1, clip_high=0.1)
    groups = groups_of(llama, foreign=weighed)
    shaped(groups[2].responses[1])
    groups[2].responses[1].weights = None
    cohort = seated(llama, ["a"], train)
    rows = [(group, response) for group in groups for response in group.responses]
    pad = torch.nn.utils.rnn.pad_sequence
    with torch.no_grad():
        off = [logps_alone(cohort, group.prompt_ids, r.token_ids, adapters=False) for group, r in rows]
    lengths = [len(r.token_ids) for _, r in rows]
    sums = response_losses(
        pad([logps_alone(cohort, group.prompt_ids, r.token_ids) for group, r in rows], batch_first=True),
        pad([torch.tensor(r.logps) for _, r in rows], batch_first=True),
        torch.tensor([advantage for group in groups for advantage in group.advantages]),
        pad([torch.ones(length) for length in lengths], batch_first=True),
        loss=loss,
        clip_low=0.1,
        clip_high=0.1,
        reference_logps_BT=pad(off, batch_first=True),
        kl_beta=kl_beta,
        weights_BT=pad([torch.tensor(r.weights or [1.0] * len(r.token_ids)) for _, r in rows], batch_first=True),
        shaping_B=torch.tensor([r.shaping for _, r in rows]),
    )
    value = sums.sum() / normaliser(loss, responses=9, tokens=sum(lengths), max_tokens=SAMPLING.max_new_tokens)
    wanted = torch.autograd.grad(value, cohort.stack.parameters())
    stats = cohort.learn({"a": groups}, {"a": 0.0})["a"]
    assert stats.loss == pytest.approx(value.item(), abs=1e-5)
    assert stats.grad_norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in wanted)), rel=1e-4)
    assert_same(gradients(cohort), [gradient[0] for gradient in wanted], 1e-4)


@pytest.mark.parametrize(
    "engine",
    [{"micro_batch_tokens": 1}, {"micro_batch_tokens": 60}, {"by_length": False}, {"shared_prefix": False}],
    ids="-".join,
)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # packed and padded
def test_micro_batches_with_and_without_foreign_rows_give_the_same_step(
    kind: str, engine: dict[str, Any], model_of: Callable[[str], Path]
) -> None:
    groups = groups_of(model_of(kind), foreign=weighed)
    shaped(groups[0].responses[0])
    groups[0].responses[0].weights = None
    whole, stats = stepped(model_of(kind), {"a": groups}, micro_batch_tokens=1 << 20)
    cut, cut_stats = stepped(model_of(kind), {"a": groups}, **engine)
    assert_same(gradients(cut), gradients(whole))
    assert numbers_of(cut_stats["a"]) == pytest.approx(numbers_of(stats["a"]), rel=1e-5, abs=1e-6)
    numbers, wanted = cut_stats["a"].foreign, stats["a"].foreign
    assert numbers is not None
    assert wanted is not None
    assert vars(numbers) == pytest.approx(vars(wanted), rel=1e-5)


def test_a_client_with_foreign_responses_and_one_without_do_not_disturb_each_other(llama: Path) -> None:
    groups = {
        "a": groups_of(llama, foreign=one_of_each),
        "b": groups_of(llama, foreign=None, seed=11),
    }
    for order in (["a", "b"], ["b", "a"]):
        both, stats = stepped(llama, {name: groups[name] for name in order})
        for row, name in enumerate(order):
            alone, alone_stats = stepped(llama, {name: groups[name]})
            assert_same(gradients(both, row), gradients(alone))
            assert numbers_of(stats[name]) == pytest.approx(numbers_of(alone_stats[name]), rel=1e-4, abs=1e-6)
        assert stats["b"].foreign is None
        numbers, wanted = stats["a"].foreign, stepped(llama, {"a": groups["a"]})[1]["a"].foreign
        assert numbers is not None
        assert wanted is not None
        assert vars(numbers) == pytest.approx(vars(wanted), rel=1e-4)


def test_two_clients_with_foreign_responses_have_numbers_of_their_own(llama: Path) -> None:
    groups = {
        "a": groups_of(llama, foreign=as_they_are),
        "b": groups_of(llama, foreign=shaped, places=[(1, 0)], seed=11),
    }
    _, stats = stepped(llama, groups)
    for name in groups:
        numbers, wanted = stats[name].foreign, stepped(llama, {name: groups[name]})[1][name].foreign
        assert numbers is not None
        assert wanted is not None
        assert vars(numbers) == pytest.approx(vars(wanted), rel=1e-4)


@pytest.mark.parametrize("engine", [{}, {"micro_batch_tokens": 40}, {"shared_prefix": False}], ids=str)
def test_rescoring_many_gives_each_response_what_it_gets_alone(engine: dict[str, Any], llama: Path) -> None:
    """Groups of different lengths, empty ones, a client without any, a response without tokens. Tolerance 1e-5."""
    ids, drawn = drawn_by(llama, 9, 5)
    nothing = Response([], [], "", False)
    prompts = {"a": ids, "b": [ids[1], ids[0]]}
    responses: dict[str, list[list[Response]]] = {
        "a": [drawn[0][::-1], [], drawn[2][:1]],
        "b": [[nothing, drawn[1][0]], [nothing]],
    }
    cohort = seated(llama, ["b", "a"], **engine)
    cohort.rescore(prompts, responses)
    assert nothing.logps == []
    seen = 0
    for name in prompts:
        alone = seated(llama, [name])
        for prompt_ids, group in zip(prompts[name], responses[name], strict=True):
            for response in group:
                if response.token_ids:
                    with torch.no_grad():
                        wanted = logps_alone(alone, prompt_ids, response.token_ids).tolist()
                    assert list(response.logps) == pytest.approx(wanted, abs=1e-5)
                    again = Response(response.token_ids, [], "", True)
                    alone.rescore({name: [prompt_ids]}, {name: [[again]]})
                    assert list(again.logps) == pytest.approx(wanted, abs=1e-5)
                    seen += 1
    assert seen == 5

    before = [list(r.logps) for r in responses["a"][0]]
    cohort.rescore({"a": [], "b": []}, {"a": [], "b": []})
    cohort.rescore({"a": ids, "b": []}, {"a": [[], [], []], "b": []})
    assert [list(r.logps) for r in responses["a"][0]] == before


def test_the_same_response_has_the_log_probs_of_whoever_scores_it(llama: Path) -> None:
    ids, drawn = drawn_by(llama, 9, 5)
    copies = {name: [[Response(drawn[0][0].token_ids, [], "", True)], [], []] for name in SEEDS}
    cohort = seated(llama, ["a", "b"])
    cohort.rescore(dict.fromkeys(SEEDS, ids), copies)
    a, b = (list(copies[name][0][0].logps) for name in SEEDS)
    assert len(a) == len(b) == len(drawn[0][0].token_ids)
    assert max(abs(logp - other) for logp, other in zip(a, b, strict=True)) > 1e-2


def test_an_own_responses_weights_do_not_depend_on_the_micro_batch(llama: Path) -> None:
    groups = groups_of(llama, foreign=as_they_are)
    weighed_zero(groups[1].responses[0])  # an own one, in a group without foreign ones
    whole, _ = stepped(llama, {"a": groups}, micro_batch_tokens=1 << 20)
    cut, _ = stepped(llama, {"a": groups}, micro_batch_tokens=1)
    assert_same(gradients(cut), gradients(whole))
