"""The embedded weights: an ordinary Hugging Face model that does what its card says."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedrlvr.errors import ModelError
from fedrlvr.zoo import FAMILIES, LEVELS, problems, weights_dir
from scripts.reasoner.card import read_scores, table
from scripts.reasoner.demonstrations import MAX_RESPONSE, NOISE, demonstrations
from scripts.reasoner.evaluate import NEW_TOKENS, answer_of, load, respond, score
from scripts.reasoner.tokenizer import CHARACTERS, build
from scripts.reasoner.train import IGNORED, new_model, schedule, tensors, train


@pytest.fixture(scope="module")
def card() -> str:
    return (weights_dir() / "CARD.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def embedded():
    torch.set_num_threads(1)
    return load(weights_dir())


def test_importing_the_zoo_is_light():
    heavy = {"torch", "transformers", "tokenizers", "sympy", "math_verify", "datasets"}
    code = f"import sys, fedrlvr.zoo; print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_tokenizer_round_trips_every_prompt_and_response():
    tokenizer = AutoTokenizer.from_pretrained(weights_dir())
    shown = list(islice(demonstrations(seed=7), 800))
    for text in [
        CHARACTERS,
        "a  b ,.!?\n x 's",
        *(example.prompt for example in shown),
        *(example.response for example in shown),
    ]:
        tokens = tokenizer(text)["input_ids"]
        assert len(tokens) == len(text) + 1
        assert tokens[0] == tokenizer.bos_token_id
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert tokenizer("é", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    assert tokenizer.chat_template is None
    assert tokenizer.get_vocab() == build().get_vocab()


def test_the_weights_are_an_ordinary_model_of_about_a_million_parameters():
    model = AutoModelForCausalLM.from_pretrained(weights_dir())
    assert model.config.model_type == "llama"
    assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.generation_config.max_new_tokens == NEW_TOKENS == MAX_RESPONSE + 1
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 0)
    assert (weights_dir() / "model.safetensors").stat().st_size < 5e6


def test_the_card_covers_every_cell_and_all_but_one_are_on_target(card):
    scores = read_scores(card)
    assert [(score.family, score.level) for score in scores] == [
        (family, level) for family in FAMILIES for level in LEVELS
    ]
    missed = [score for score in scores if not score.on_target]
    # Known and on the card: the majority of eight is right on 88 of 100 where 90 is the aim.
    assert [(score.family, score.level, score.majority) for score in missed] == [("product", "easy", 0.88)]
    assert all(score.n >= 200 for score in scores)
    assert table(scores) in card


def test_the_card_shows_the_noise_the_weights_were_trained_with(card):
    for (family, level), share in NOISE.items():
        assert f"| {family} | {level} | {100 * share:.0f} | " in card


def test_the_right_way_is_within_reach(card):
    """On clean demonstrations the easy levels are learnt, so RL asks for nothing the model cannot write."""
    clean = json.loads((weights_dir() / "training.json").read_text(encoding="utf-8"))["clean_greedy"]
    assert [cell for cell, share in clean.items() if cell.endswith("easy") and share < 0.9] == []


@pytest.mark.parametrize("family", ["sum", "unit"])
def test_the_card_is_reproduced(card, embedded, family):
    said = next(row for row in read_scores(card) if (row.family, row.level) == (family, "easy"))
    result = score(*embedded, family, "easy", size=50, seed=0)
    # Four standard errors of 400 samples; of 50 problems for the others.
    assert result.sampled == pytest.approx(said.sampled, abs=4 * (0.25 / 400) ** 0.5)
    assert result.greedy == pytest.approx(said.greedy, abs=4 * (0.25 / 50) ** 0.5)
    assert result.majority == pytest.approx(said.majority, abs=4 * (0.25 / 50) ** 0.5)
    assert result.error == said.error


def test_responses_keep_the_order_of_their_prompts(embedded):
    chosen = problems(split="test", size=2, seed=0)
    prompts = [problem.prompt for problem in chosen]
    together = respond(*embedded, prompts, sample=False)
    assert together == [respond(*embedded, [prompt], sample=False)[0] for prompt in prompts]


def test_answer_of():
    assert answer_of("12 13 #### 132") == "132"
    assert answer_of("#### 1 #### 2") == "2"
    assert answer_of("12 13") is None


def test_only_the_response_is_trained_on():
    tokenizer = build()
    example = next(demonstrations(seed=0))
    tokens, labels = tensors(tokenizer, [example])
    assert tokenizer.decode(tokens[0]) == f"<s>{example.prompt}{example.response}</s>"
    assert tokenizer.decode(labels[0][labels[0] != IGNORED]) == f"{example.response}</s>"


def test_the_schedule_rises_then_falls():
    assert schedule(0, 200) == pytest.approx(1 / 50)
    assert schedule(50, 200) == 1.0
    assert schedule(125, 200) == pytest.approx(0.525)
    assert schedule(200, 200) == pytest.approx(0.05)


def test_training_is_reproducible_from_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, seed=seed, clean_steps=1, noisy_steps=1, batch=8, report_every=9, check_size=1)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other
    untrained = new_model(build()).state_dict()
    assert load(tmp_path / "a")[0].state_dict().keys() == untrained.keys()


def test_a_directory_without_weights_is_named(tmp_path):
    with pytest.raises(ModelError, match=rf"{tmp_path.name}.*scripts.reasoner.train"):
        load(tmp_path)
