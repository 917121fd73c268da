"""Packed groups: where the tokens stand, who attends to whom, and the same gradient as one response after another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrlvr.policy.attention import Packing, SharedPrompts, _one_query, _packed
from fedrlvr.policy.batches import Pack, Row, micro_batches
from fedrlvr.rl import Response

CPU = torch.device("cpu")
GROUPS = [(3, [2, 1]), (1, [3]), (4, [0, 2, 2])]
"""(tokens of the prompt, input tokens of each response); a response of one token has no input token."""


def pack(client: int, prompt: list[int], *responses: list[int]) -> Pack:
    return Pack(client, prompt, [Row(Response(tokens, [], "", True), 1.0) for tokens in responses])


def test_the_slots_of_two_groups_by_hand() -> None:
    """Tokens: p p p a a b | q c c c. P = 3, T = 3, so prompts take slots 0-5 and responses 6-14."""
    packing = Packing.of([(3, [2, 1]), (1, [3])], CPU)
    assert packing.prompt_BP.tolist() == [[0, 1, 2], [6, 0, 0]]
    assert packing.response_RT.tolist() == [[3, 4, 0], [5, 0, 0], [7, 8, 9]]
    assert packing.slot_N.tolist() == [0, 1, 2, 6, 7, 9, 3, 12, 13, 14]
    assert packing.group_R.tolist() == [0, 0, 1]
    assert packing.lengths_B.tolist() == [3, 1]
    assert packing.counts == [2, 1]
    assert packing.allowed_RTS[2].tolist() == [
        [True, False, False, True, False, False],
        [True, False, False, True, True, False],
        [True, False, False, True, True, True],
    ]


def test_the_window_by_hand() -> None:
    """A window of 2: the second token of a response behind a prompt of 3 sees itself and the token before it."""
    mask = Packing.of([(3, [2])], CPU).mask(torch.float32, 2)
    assert (mask[0, 0] == 0).tolist() == [[False, False, True, True, False], [False, False, False, True, True]]


def dense(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Every response behind its own prompt, by softmax and products; the tokens' outputs [1, N, H, D]."""
    out = torch.zeros(1, query.shape[2], query.shape[1], query.shape[3])
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    start = 0
    for prompt, responses in GROUPS:
        end = start + prompt
        for width in [0, *responses]:
            at = [*range(start, start + prompt), *range(end, end + width)]
            q, k, v = (x[0, :, at] for x in (query, key, value))
            scores = q @ k.transpose(1, 2) * 0.3
            n = len(at)
            distance = torch.arange(n).unsqueeze(1) - torch.arange(n)
            allowed = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            rows = (scores.masked_fill(~allowed, -torch.inf).softmax(dim=2) @ v).transpose(0, 1)
            places = list(range(n)) if width == 0 else list(range(prompt, n))
            if width or start == at[0]:
                out = out.index_copy(
                    1, torch.tensor([at[i] for i in places], dtype=torch.int64), rows[places].unsqueeze(0)
                )
            end += width
        start = end
    return out


@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
@pytest.mark.parametrize("window", [None, 2, 50])
def test_packed_attention_and_its_gradient_against_dense(heads: tuple[int, int], window: int | None) -> None:
    """Tolerance 1e-5. Groups of other sizes, a response without an input token, grouped keys, a sliding window."""
    generator = torch.Generator().manual_seed(5)
    tokens = sum(prompt + sum(responses) for prompt, responses in GROUPS)
    query = torch.randn(1, heads[0], tokens, 4, generator=generator).requires_grad_()
    key, value = (torch.randn(1, heads[1], tokens, 4, generator=generator).requires_grad_() for _ in range(2))
    weights = torch.randn(1, tokens, heads[0], 4, generator=generator)
    output = _packed(query, key, value, Packing.of(GROUPS, CPU), 0.3, window)
    wanted = dense(query, key, value, window)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad((output * weights).sum(), (query, key, value))
    expected = torch.autograd.grad((wanted * weights).sum(), (query, key, value))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


def test_only_responses_of_one_token() -> None:
    """Then no response has an input token and all predictions are the prompt's last token's."""
    (batch,) = micro_batches([pack(0, [5, 6], [7], [8])], 100, 0, CPU, packed=True, shared=True, by_length=True)
    assert batch.ids.tolist() == [[5, 6]]
    assert batch.predict_M.tolist() == [1, 1]
    x = torch.randn(1, 2, 2, 4)
    assert batch.packing is not None
    assert _packed(x, x, x, batch.packing, None, None).shape == (1, 2, 2, 4)


@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_one_query_against_torch(heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(6)
    query = torch.randn(3, heads[0], 1, 4, generator=generator)
    buffer = torch.randn(2, 3, heads[1], 9, 4, generator=generator)
    key, value = buffer[0, :, :, :5], buffer[1, :, :, :5]  # the filled part of a cache
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]], dtype=torch.bool).view(3, 1, 1, 5)
    repeated = (x.repeat_interleave(heads[0] // heads[1], dim=1) for x in (key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.4)
    output = _one_query(query, key, value, mask, 0.4)
    torch.testing.assert_close(output, wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_a_micro_batch_by_hand() -> None:
    """The longer pack comes first in the cut, but a client's tokens lie side by side and clients in order."""
    packs = [pack(0, [1, 2], [3, 4, 5], [6]), pack(1, [7, 8, 9], [3, 4], [5, 6, 1])]
    (batch,) = micro_batches(packs, 100, 0, CPU, packed=True, shared=True, by_length=True)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 7, 8, 9, 3, 5, 6]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 3, 4]]
    assert batch.predict_M.tolist() == [1, 2, 3, 1, 6, 7, 6, 8, 9]
    assert batch.targets_M.tolist() == [3, 4, 5, 6, 3, 4, 5, 6, 1]
    assert batch.spans == [(0, 0, 4), (1, 4, 10)]
    assert batch.client_R.tolist() == [0, 0, 1, 1]
    assert batch.mask_RT.sum(dim=1).tolist() == [3, 1, 2, 3]


def test_padded_rows_by_hand() -> None:
    packs = [pack(0, [1, 2], [3, 4, 5], [6]), pack(1, [7], [3, 4])]
    (batch,) = micro_batches(packs, 100, 0, CPU, packed=False, shared=True, by_length=False)
    assert batch.packing is None
    assert batch.ids.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0], [7, 3, 0, 0]]
    assert batch.predict_M.tolist() == [1, 2, 3, 5, 8, 9]
    assert batch.spans == [(0, 0, 8), (1, 8, 12)]


def test_the_budget_counts_tokens_and_padding() -> None:
    packs = [pack(0, [1] * 3, [2] * 2), pack(0, [1] * 7, [2] * 2), pack(0, [1] * 4, [2] * 2)]  # 4, 8 and 5 tokens

    def sizes(budget: int, *, packed: bool, by_length: bool) -> list[list[int]]:
        batches = micro_batches(packs, budget, 0, CPU, packed=packed, shared=True, by_length=by_length)
        return [list(batch.ids.shape) for batch in batches]

    assert sizes(13, packed=True, by_length=True) == [[1, 13], [1, 4]]
    assert sizes(12, packed=True, by_length=False) == [[1, 12], [1, 5]]
    assert sizes(1, packed=True, by_length=True) == [[1, 8], [1, 5], [1, 4]]
    assert sizes(13, packed=False, by_length=True) == [[1, 8], [2, 5]]
    assert sizes(16, packed=False, by_length=False) == [[2, 8], [1, 5]]


@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_shared_prompts_against_a_cache_of_each_row(heads: tuple[int, int]) -> None:
    """Two prompts of 3 and 5 tokens, padded on the left; rows of theirs in any order, more of one than of the other."""
    generator = torch.Generator().manual_seed(7)
    prompt_R = torch.tensor([1, 0, 1, 1])
    prompts = torch.randn(2, 2, heads[1], 5, 4, generator=generator)
    mask_BP = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    query = torch.randn(4, heads[0], 1, 4, generator=generator)
    buffer = torch.randn(2, 4, heads[1], 6, 4, generator=generator)
    own_key, own_value = buffer[0, :, :, :3], buffer[1, :, :, :3]  # of six positions three are filled

    shared = SharedPrompts([(prompts[0], prompts[1])], mask_BP)
    shared.seat(prompt_R)
    shared.filled = 3
    output = shared.attend(0, query, buffer[0], buffer[1], 0.4)
    keys, values = (
        torch.cat([p[prompt_R], part], dim=2) for p, part in ((prompts[0], own_key), (prompts[1], own_value))
    )
    mask = torch.cat([mask_BP[prompt_R], torch.ones(4, 3, dtype=torch.bool)], dim=1).view(4, 1, 1, 8)
    torch.testing.assert_close(output, _one_query(query, keys, values, mask, 0.4), rtol=1e-5, atol=1e-6)
