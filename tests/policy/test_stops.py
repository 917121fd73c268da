"""Stop strings: which token completes one, and that a batch is sampled as without them up to that token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import end_at, moved_adapter, tiny_cohort, tiny_model

from fedrlvr.config import EngineConfig, ModelConfig, PromptConfig
from fedrlvr.errors import ModelError
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.hidden_states import HiddenStates
from fedrlvr.policy.sampler import Decoding
from fedrlvr.policy.stops import StopStrings, StopWatch, ended, overruns
from fedrlvr.rl import Response

PIECES = ["a", "b", "ab", "</", "answer", ">", "> so", "</answer>", "\n", "\n\nQ", ":", "", " ", " x", "x y"]
"""Texts of tokens, by id."""


def stops(*strings: str) -> StopStrings:
    return StopStrings(strings, lambda ids: "".join(PIECES[i] for i in ids))


def ids_of(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("strings", "pieces", "end"),
    [
        (["</answer>"], ["a", "</", "answer", ">", "b"], 4),  # spread over tokens
        (["</answer>"], ["a", "</", "answer", "> so", "b"], 4),  # completed in the middle of a token
        (["</answer>"], ["a", "</answer>"], 2),  # one token
        (["</answer>"], ["</", "a", "answer", ">"], None),
        (["\n\nQ:"], ["a", "\n", "\n\nQ", ":"], 4),
        (["\n\n"], ["a", "\n\nQ", "b"], 2),
        (["b", "ab"], ["a", "ab"], 2),
        (["ba"], ["b", "", "", "a"], 4),  # tokens without a text of their own stand between
        ([" x"], ["a", " ", "a", " x"], 4),
        (["x "], ["a", " x", " "], 3),
        (["x y"], [*["a"] * 40, "x y", "b"], 41),
        (["a" * 60], ["a"] * 70, 60),
    ],
)
def test_the_token_that_completes_a_stop_string(strings: list[str], pieces: list[str], end: int | None) -> None:
    watched, ids = stops(*strings), ids_of(*pieces)
    assert watched.end(ids) == end
    text = "".join(pieces)
    if end is None:
        assert watched.cut(text) == text
        return
    assert any(watched.cut(text).endswith(string) for string in strings)
    assert not ended(ids[: end - 1], {99}, watched)
    assert ended(ids[:end], {99}, watched)
    assert ended(ids[:end], {ids[end - 1]}, None)
    assert not overruns(ids[:end], watched)
    assert overruns([*ids[:end], 0], watched)
    assert not overruns([*ids[:end], 0], None)


def test_the_first_of_several_stop_strings_cuts_the_text() -> None:
    assert stops("c", "b").cut("abc") == "ab"
    assert stops("bc", "b").cut("abc") == "ab"
    assert stops("x").cut("abc") == "abc"


def test_a_character_that_is_spread_over_tokens_is_seen_when_it_is_whole() -> None:
    raw = ["é".encode()[:1], "é".encode()[1:], b"a"]
    watched = StopStrings(["é"], lambda ids: b"".join(raw[i] for i in ids).decode("utf-8", "replace"))
    assert watched.end([2, 0, 1, 2]) == 3
    assert watched.end([2, 0, 2]) is None


def test_a_look_takes_the_tokens_since_the_last_one() -> None:
    watch = StopWatch(stops("ba"), {11}, torch.tensor([False, False, True, False]), 5)
    tokens = torch.tensor([ids_of("b", "a", "a"), ids_of("b", "", "a"), ids_of("b", "a", "a"), ids_of("a", "b", "b")])
    tokens[1, 1] = 11  # an end token: what follows is no part of the response
    rows = torch.arange(4)
    assert watch.look(rows, tokens, 1).tolist() == [False] * 4
    assert watch.look(rows, tokens, 3).tolist() == [True, False, False, False]
    kept = torch.tensor([3])
    tokens = torch.tensor([ids_of("a", "b", "b", "a", "a")])
    assert watch.look(kept, tokens, 5).tolist() == [True]
    assert watch.lengths.tolist() == [2, 6, 6, 4]


# In a batch.

PROMPTS = ["1 + 1 =", "What is 12 + 345?", "A dose of 5 mg per kg for 20 kg is"]
LIMIT = 24


def seated(directory: Path, stop: tuple[str, ...] = (), **engine: Any) -> Cohort:
    cohort = tiny_cohort(directory)
    end_at(cohort, frozenset(range(2, 8)))
    cohort.base = replace(cohort.base, stop=stop)
    cohort.seat({f"client-{i}": moved_adapter(cohort, i) for i in range(2)})
    cohort.sampler = DecodeSampler(cohort.base, cohort.stack, EngineConfig(autocast="off", threads=1, **engine))
    return cohort


def draw(cohort: Cohort, states: dict[str, HiddenStates] | None = None) -> list[list[list[Response]]]:
    ids = [cohort.base.encode(prompt) for prompt in PROMPTS]
    prompts = {"client-0": ids, "client-1": ids[1:2]}
    return list(cohort.sample(prompts, Decoding(6, LIMIT), {"client-0": 5, "client-1": 6}, states).values())


def flat(drawn: list[list[list[Response]]]) -> list[Response]:
    return [response for client in drawn for group in client for response in group]


@pytest.mark.parametrize(
    "engine", [{}, {"compact": False}, {"decode_rows": 12}, {"decode_cache": "static"}, {"prefill_once": False}]
)
def test_a_response_is_that_without_stop_strings_up_to_the_token_that_completes_one(
    llama: Path, engine: dict[str, Any]
) -> None:
    whole = flat(draw(seated(llama)))
    texts = [response.text for response in whole]
    # Two characters that follow each other in some response, and one that stands in some.
    pair = next(text[i : i + 2] for text in texts for i in range(6, len(text) - 1) if text[i : i + 2].isprintable())
    stop = (pair, "7")
    cohort = seated(llama, stop, **engine)
    watched = cohort.base.stops
    assert watched is not None
    stopped = 0
    for response, without in zip(flat(draw(cohort)), whole, strict=True):
        # By the definition: the first prefix of the tokens whose text holds a stop string.
        prefixes = (cohort.base.tokenizer.decode(without.token_ids[: n + 1]) for n in range(len(without.token_ids)))
        end = next((n for n, text in enumerate(prefixes, start=1) if any(s in text for s in stop)), None)
        length = end or len(without.token_ids)
        assert response.token_ids == without.token_ids[:length]
        assert torch.allclose(torch.tensor(response.logps), torch.tensor(without.logps[:length]), atol=1e-5)
        assert response.finished == (without.finished or end is not None)
        if end is not None:
            stopped += 1
            assert any(response.text.endswith(string) for string in stop)
    assert 0 < stopped < len(whole)


def test_hidden_states_are_those_that_the_completing_token_was_drawn_from(llama: Path) -> None:
    whole = flat(draw(seated(llama)))
    character = next(text[3] for text in (response.text for response in whole) if len(text) > 6)
    states: dict[str, HiddenStates] = {}
    cohort = seated(llama, (character,))
    drawn = draw(cohort, states)
    checked = 0
    for (client, of_client), index in zip(states.items(), range(2), strict=True):
        for p, group in enumerate(drawn[index]):
            prompt = cohort.base.encode(PROMPTS[p if index == 0 else 1])
            for g, response in enumerate(group):
                if len(response.token_ids) in (1, LIMIT):
                    continue
                ids = torch.tensor([[*prompt, *response.token_ids[:-1]]])
                cohort.stack.spans = [(cohort.clients.index(client), 0, ids.shape[1])]
                with torch.no_grad():
                    hidden = cohort.base.model.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
                cohort.stack.spans = None
                assert torch.allclose(of_client.response_PGH[p, g], hidden, atol=1e-4)
                checked += 1
    assert checked > 3


def test_rows_that_a_stop_string_ended_leave_the_batch(llama: Path) -> None:
    rows: list[int] = []
    cohort = seated(llama, tuple("0123456789aeiou "))
    inner = cohort.base.model.model
    inner.register_forward_pre_hook(lambda _, args, given: rows.append(len(given["input_ids"])), with_kwargs=True)
    prompts = {"client-0": [cohort.base.encode(PROMPTS[0])]}
    (group,) = cohort.sample(prompts, Decoding(32, LIMIT), {"client-0": 1})["client-0"]
    lengths = [len(response.token_ids) for response in group]
    assert all(response.finished for response in group)
    assert max(lengths) < LIMIT
    assert len(rows) == max(lengths), "one pass a token, and none after the last row has ended"
    # A step's batch holds at most the rows that are alive, by as much as compaction waits for.
    for step, count in enumerate(rows[1:], start=1):
        assert count * 0.8 <= max(1, sum(length > step for length in lengths))


def test_the_self_check_and_a_run_without_stop_strings_watch_nothing(llama: Path) -> None:
    assert load_base(ModelConfig(name=str(llama), device="cpu")).stops is None
    cohort = seated(llama, ("a", " ", "1"))
    cohort.self_check()


def test_a_stop_string_with_a_special_token_would_never_be_seen(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path, "llama")
    with pytest.raises(ModelError, match=r"prompt\.stop.*'a</s>'"):
        load_base(ModelConfig(name=str(directory), device="cpu"), PromptConfig(stop=["b", "a</s>"]))


def test_text_begins_with_the_prefill_and_ends_with_the_stop_string(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path, "llama")
    base = load_base(
        ModelConfig(name=str(directory), device="cpu"), PromptConfig(prefill="<answer>", stop=["</answer>"])
    )
    ids = base.tokenizer("7</answer> and more", add_special_tokens=False)["input_ids"]
    assert base.decode(ids) == "<answer>7</answer>"
    assert base.tokenizer.decode(base.encode("1 + 1")) == "<s>1 + 1<answer>"
