"""What the probes see, what they may say, and what their losses are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from planted import ANSWERS, GROUP, HIDDEN, LONGEST, seen, world
from torch import nn

from fedrlvr.supervision.features import features, joined, labelled
from fedrlvr.supervision.judge import Replay
from fedrlvr.supervision.majority import clusters
from fedrlvr.supervision.probes import CorrectionProbe, Norm, ReliabilityProbe, class_weights


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reliability() -> ReliabilityProbe:
    return ReliabilityProbe(HIDDEN, GROUP, rng()).eval()


def correction() -> CorrectionProbe:
    return CorrectionProbe(HIDDEN, GROUP, rng()).eval()


def test_features_by_hand() -> None:
    votes = [clusters(ANSWERS["half"])]  # a: 3, b: 1, four that could not be read
    hidden = torch.randn(1, 9, 4, requires_grad=True, dtype=torch.bfloat16)
    taken = features(hidden[:, 0], hidden[:, 1:], votes, [[5, 10, 40, 0, 20, 1, 2, 4]], 20)
    assert taken.valid_P.tolist() == [0.5]
    assert taken.cluster_PG.tolist() == [[0.375, 0.125, 0, 0, 0, 0, 0, 0]]
    assert taken.length_PG.tolist() == [pytest.approx([0.25, 0.5, 1, 0, 1, 0.05, 0.1, 0.2])]
    assert taken.votes_P.tolist() == [3]
    assert taken.others_PG.nonzero().tolist() == [[0, 2]]
    assert taken.prompt_PH.dtype == taken.response_PGH.dtype == torch.float32
    assert not taken.prompt_PH.requires_grad
    assert not taken.response_PGH.requires_grad
    assert torch.equal(taken.response_PGH, hidden[:, 1:].float())


def test_the_largest_cluster_is_the_first_feature_wherever_it_began() -> None:
    votes = clusters(["x", "a", "b", "b", "b", "a", "y", "z"])
    taken = features(torch.zeros(1, 4), torch.zeros(1, 8, 4), [votes], [[1] * 8], 20)
    assert (taken.cluster_PG * 8).tolist() == [[3, 2, 1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("kind", "possible"),
    [("plain", [0, 1, 2]), ("unanimous", [0]), ("tied", [0, 4]), ("unreadable", [0]), ("half", [0, 1])],
)
def test_only_sizes_of_clusters_outside_the_majority_are_possible(kind: str, possible: list[int]) -> None:
    taken = seen(kind, "plain")
    assert taken.possible_PC[0].nonzero().flatten().tolist() == possible
    number_C = correction()(taken).softmax(dim=1)[0]
    assert number_C.nonzero().flatten().tolist() == possible
    assert number_C.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("prompts", "responses", "votes", "lengths", "longest"),
    [
        ((2, 4), (1, 8, 4), 1, 8, 20),
        ((1, 4), (1, 8, 5), 1, 8, 20),
        ((1, 4), (1, 7, 4), 1, 7, 20),
        ((1, 4), (1, 8, 4), 2, 8, 20),
        ((1, 4), (1, 8, 4), 1, 7, 20),
        ((1, 4), (1, 8, 4), 1, 8, 0),
    ],
)
def test_features_that_do_not_go_together_are_refused(
    prompts: tuple[int, ...], responses: tuple[int, ...], votes: int, lengths: int, longest: int
) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        features(
            torch.zeros(prompts), torch.zeros(responses), [clusters(["a"] * 8)] * votes, [[1] * lengths], longest
        )  # fmt: skip


@pytest.mark.parametrize("where", ["prompt", "response"])
def test_hidden_states_must_be_finite(where: str) -> None:
    prompt, response = torch.zeros(1, 4), torch.zeros(1, 8, 4)
    {"prompt": prompt, "response": response}[where][0, 0] = math.inf
    with pytest.raises(ValueError, match="finite"):
        features(prompt, response, [clusters(["a"] * 8)], [[1] * 8], 20)


def test_labels_by_hand() -> None:
    votes = [clusters(ANSWERS["plain"]) for _ in range(3)]
    known = labelled(
        seen("half", "plain", "plain", "plain"),
        [1, 3, 2],
        votes,
        [[1.0] * 5 + [0.0] * 3, [0.0] * 5 + [1, 1, 0], [0.0] * 8],
    )
    assert known.right_P.tolist() == [1, 0, 0]
    assert known.outside_P.tolist() == [0, 2, 0]
    assert known.correct_PG.tolist() == [[1] * 5 + [0] * 3, [0] * 5 + [1, 1, 0], [0] * 8]
    everything = seen("half", "plain", "plain", "plain")
    assert torch.equal(known.prompt_PH, everything.prompt_PH[[1, 3, 2]])
    assert torch.equal(known.possible_PC, everything.possible_PC[[1, 3, 2]])


def test_a_number_no_cluster_has_becomes_possible_when_it_is_the_truth() -> None:
    everything = seen("plain")
    known = labelled(everything, [0], [clusters(ANSWERS["plain"])], [[0.0] * 5 + [1.0] * 3])
    assert known.outside_P.tolist() == [3]
    assert known.possible_PC[0].nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert everything.possible_PC[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert torch.isfinite(correction().loss(known))


def test_labels_come_one_a_row() -> None:
    with pytest.raises(ValueError, match="2 rows, 1 votes, 1 rewards"):
        labelled(seen("plain", "plain"), [0, 1], [clusters(ANSWERS["plain"])], [[0.0] * 8])


def test_the_widths_are_the_authors() -> None:
    def widths(probe: nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in probe.named_parameters() if name.endswith("weight")}

    prompt = {"prompt.0.weight": (25,), "prompt.1.weight": (128, 25)}
    head = {"head.0.weight": (640,), "head.1.weight": (256, 640)}
    each = {"each.0.weight": (640,), "each.1.weight": (256, 640), "each.3.weight": (2, 256)}
    response = {"response.0.weight": (17,), "response.1.weight": (64, 17), "response.3.weight": (512, 64)}
    assert widths(reliability()) == {**prompt, **response, **head, "head.3.weight": (2, 256), **each}
    response |= {"response.0.weight": (16,), "response.1.weight": (64, 16)}
    assert widths(correction()) == {**prompt, **response, **head, "head.3.weight": (9, 256)}


def test_the_gradient_reaches_every_layer() -> None:
    batch = world(12, 0).labelled()
    first, second = reliability().train(), correction().train()
    vote, each = first.loss(batch)
    (vote + each).backward()
    second.loss(batch).backward()
    for name, parameter in [*first.named_parameters(), *second.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_single_responses_teach_the_prompt_branch_too() -> None:
    probe = reliability().train()
    probe.loss(world(12, 0).labelled())[1].backward()
    for name, parameter in probe.named_parameters():
        assert (parameter.grad is None) is name.startswith("head"), name


def test_a_new_layer_is_drawn_as_torch_draws_it_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    layer = reliability().head[1]
    assert torch.equal(torch.get_rng_state(), before)
    for drawn in (layer.weight, layer.bias):
        assert drawn.abs().max() <= 1 / math.sqrt(640)
        assert drawn.abs().max() > 0.98 / math.sqrt(640)
        assert abs(drawn.mean()) < 0.1 / math.sqrt(640)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("which", "matters"), [(slice(0, 5), False), (slice(5, 8), True)])
def test_the_number_is_read_from_responses_outside_the_majority_only(
    which: slice, matters: bool, training: bool
) -> None:
    taken = seen("plain", "plain")
    response_PGH = taken.response_PGH.clone()
    response_PGH[0, which] += 1
    other = replace(taken, response_PGH=response_PGH)
    assert torch.equal(correction().train(training)(taken), correction().train(training)(other)) is not matters
    assert not torch.equal(reliability().train(training)(taken), reliability().train(training)(other))


def test_responses_outside_the_majority_are_averaged() -> None:
    """Two equal responses outside the majority say what one does."""
    votes = [clusters(answers) for answers in (["a"] * 6 + ["b", "b"], ["a"] * 6 + ["b", None])]
    hidden = torch.randn(1, 8, HIDDEN, generator=rng())
    hidden[0, 7] = hidden[0, 6]
    two, single = (features(hidden[:, 0], hidden, [vote], [[1] * 8], LONGEST) for vote in votes)
    same = {"valid_P": two.valid_P, "cluster_PG": two.cluster_PG, "possible_PC": two.possible_PC}
    assert torch.allclose(correction()(two), correction()(replace(single, **same)), atol=1e-6)


def test_lengths_matter_to_reliability_only() -> None:
    taken = seen("plain")
    longer = replace(taken, length_PG=taken.length_PG + 0.3)
    assert torch.equal(correction()(taken), correction()(longer))
    assert not torch.equal(reliability()(taken), reliability()(longer))


@pytest.mark.parametrize("name", ["prompt_PH", "valid_P", "cluster_PG"])
def test_the_prompt_branch_of_both_sees(name: str) -> None:
    taken = seen("plain")
    other = replace(taken, **{name: getattr(taken, name) + 0.5})
    assert not torch.equal(correction()(taken), correction()(other))
    assert not torch.equal(reliability()(taken), reliability()(other))


def test_reliability_does_not_depend_on_the_order_of_responses() -> None:
    taken = seen("plain")
    turned = replace(taken, response_PGH=taken.response_PGH.flip(1), length_PG=taken.length_PG.flip(1))
    assert torch.allclose(reliability()(taken), reliability()(turned), atol=1e-6)


def test_losses_are_weighted_cross_entropies() -> None:
    batch = world(10, 1).labelled()
    first, second = reliability(), correction()
    vote, each = first.loss(batch)
    weights = class_weights(batch.right_P, 2)[batch.right_P]
    logps = first(batch).log_softmax(1)[range(10), batch.right_P]
    assert vote.item() == pytest.approx(-(weights * logps).sum().item() / weights.sum().item(), rel=1e-5)
    weights = class_weights(batch.outside_P, 9)[batch.outside_P]
    logps = second(batch).log_softmax(1)[range(10), batch.outside_P]
    assert second.loss(batch).item() == pytest.approx(-(weights * logps).sum().item() / weights.sum().item(), rel=1e-5)
    # an each-head that is set to say (0, 1) everywhere
    nn.init.zeros_(first.each[3].weight)
    first.each[3].bias.data = torch.tensor([0.0, 1.0])
    share = batch.correct_PG.double().mean().item()
    expected = math.log(1 + math.e) - share
    assert first.loss(batch)[1].item() == pytest.approx(expected, rel=1e-5)
    assert each.item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([4, 1], [2 / 3, 4 / 3]),  # 1/2 and 1, over their mean 3/4
        ([7, 0], [1, 0]),
        ([100, 1], [0.25, 1 / 0.55]),  # 0.1 / 0.55 is below the lowest
        ([0, 10_000, 10_000, 10_000, 10_000, 10_000, 10_000, 10_000, 1], [0, *[0.25] * 7, 4]),  # 1 / 0.13375 is above
    ],
)
def test_class_weights_by_hand(counts: list[int], expected: list[float]) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    assert class_weights(labels, len(counts)).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_norm_takes_one_row_by_its_running_statistics_and_leaves_them() -> None:
    norm = Norm(2).train()
    norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    assert mean.tolist() == pytest.approx([0.2, 0.4])
    assert variance.tolist() == pytest.approx([0.9 + 0.2, 0.9 + 0.8])
    row = torch.tensor([[1.2, 0.4]], requires_grad=True)
    assert norm(row).tolist() == [pytest.approx([1 / math.sqrt(1.1), 0], rel=1e-4, abs=1e-6)]
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, variance)
    assert norm.num_batches_tracked == 1
    norm(row).sum().backward()
    assert row.grad is not None
    assert row.grad.abs().min() > 0


def filled(*labels: int, size: int = 100) -> Replay:
    """A replay of problems with these labels, numbered from 1 in their votes."""
    replay = Replay(size)
    batch = world(1, 0).labelled()
    for number, label in enumerate(labels, 1):
        replay.add(replace(batch, outside_P=torch.tensor([label]), votes_P=torch.tensor([number])))
    return replay


def test_replay_forgets_the_oldest() -> None:
    replay = filled(0, 0, 0, 0, 0, size=3)
    kept = replay.everything()
    assert kept is not None
    assert kept.votes_P.tolist() == [3, 4, 5]
    assert len(replay) == 3


def test_replay_draws_without_repetition_and_all_if_there_are_no_more() -> None:
    replay = filled(*[0] * 6)
    for count, expected in ((4, 4), (6, 6), (9, 6)):
        for stratified in (False, True):
            drawn = [int(row.votes_P) for row in replay.draw(count, rng(), stratified=stratified)]
            assert len(set(drawn)) == len(drawn) == expected
    assert replay.draw(0, rng()) == []
    assert Replay(3).draw(2, rng(), stratified=True) == []
    assert Replay(3).everything() is None


def test_replay_draws_anyone_and_by_its_generator() -> None:
    replay, generator = filled(*[0] * 6), rng()
    draws = [tuple(int(row.votes_P) for row in replay.draw(2, generator)) for _ in range(300)]
    assert len(set(draws)) == 30
    again = rng()
    assert [tuple(int(row.votes_P) for row in replay.draw(2, again)) for _ in range(300)] == draws


def test_a_stratified_draw_gives_each_label_its_share_and_then_anyone() -> None:
    replay, generator = filled(*[0] * 20, 1, *[2] * 5), rng()
    rest = set()
    for _ in range(60):
        labels = sorted(int(row.outside_P) for row in replay.draw(7, generator, stratified=True))
        assert labels.count(0) >= 2  # 7 // 3
        assert labels.count(1) == 1  # all there is
        assert labels.count(2) >= 2
        rest.add((labels.count(0), labels.count(2)))
    assert rest >= {(4, 2), (3, 3)}
    assert [int(row.outside_P) for row in filled(*range(6)).draw(4, rng(), stratified=True)] == [0, 1, 2, 3]


def test_replay_keeps_copies() -> None:
    batch = world(2, 0).labelled()
    replay = Replay(5)
    replay.add(batch)
    batch.prompt_PH.zero_()
    kept = replay.everything()
    assert kept is not None
    assert kept.prompt_PH.abs().min() > 0
    assert joined([kept, kept]).prompt_PH.shape == (4, HIDDEN)
