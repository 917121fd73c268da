"""The cases that are measured: a model directory, problems of each client, sizes and a reward, the same for all sides.

E1  the embedded reasoner: 8 clients x 8 problems x 8 responses, at most 32 tokens, the true grader
E2  the shape of SmolLM2-135M, random weights: 4 clients x 2 problems x 8 responses of 32 tokens, prompts of 200-300
    tokens: MedQA questions where their directory is given, else random words
E3  a narrow model with a vocabulary of 151,936: 4 problems x 8 responses of 128 tokens, 4,096 in all
LENGTH  the embedded reasoner with an end token it cannot say, so that every response has the asked length

Random-weight models and LENGTH have an end token beyond the model's vocabulary: no response ends early, on any side.
Models are written in Hugging Face format under runs/bench/models, once.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

from fedrlvr.tasks import Problem, Question, load
from fedrlvr.tasks.grading import grade

if TYPE_CHECKING:
    from fedrlvr.config import ModelConfig
    from fedrlvr.policy.base import Base

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "runs" / "bench" / "models"
NAMES = ("E1", "E2", "E3", "LENGTH")

SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
WIDE_VOCABULARY: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
# Wider than a trained model begins with, so that the next token depends on the text and not on the embeddings alone.
INITIALIZER_RANGE = 0.05
PAD, BOS, UNK, NEVER = "<pad>", "<s>", "<unk>", "<never>"


@dataclass(frozen=True)
class Case:
    """One case, for every side.

    model: a directory in Hugging Face format.
    pools: the problems of each client; a round takes the next `problems` of them, in order and around.
    reward: (completion, problem) -> reward.
    """

    name: str
    model: Path
    pools: Sequence[Sequence[Problem]]
    problems: int
    responses: int
    max_new_tokens: int
    learning_rate: float
    reward: Callable[[str, Problem], float]

    @property
    def clients(self) -> int:
        """How many clients take part."""
        return len(self.pools)

    def draw(self, client: int, round_: int) -> list[Problem]:
        """The problems of a client in a round, counted from 0."""
        return take(self.pools[client], round_ * self.problems, self.problems)


Asked = TypeVar("Asked", Problem, Question)


def take(pool: Sequence[Asked], start: int, count: int) -> list[Asked]:
    """`count` problems from `start` on, around the end."""
    return [pool[(start + i) % len(pool)] for i in range(count)]


def parity(completion: str, problem: Problem) -> float:
    """1.0 for texts whose bytes have an even sum: cheap, deterministic, and mixed within nearly every group."""
    return float(sum(completion.encode("utf-8")) % 2 == 0)


def true_reward(completion: str, problem: Problem) -> float:
    """The grader of the problem's kind."""
    return grade(completion, problem.answer, problem.kind)


def build(
    name: str,
    *,
    clients: int | None = None,
    length: int | None = None,
    medqa: Path | None = None,
    models: Path = MODELS,
) -> Case:
    """A case at its own size, or scaled to `clients` or to responses of `length` tokens.

    medqa: directory of MedQA, for E2's prompts.

    Raises:
        ValueError: there is no such case.
        DataError: MedQA cannot be read, or has too few questions of 200 to 300 tokens.
    """
    from fedrlvr.zoo import weights_dir

    if name == "E1":
        case = Case("E1", weights_dir(), [], 8, 8, 32, 3e-3, true_reward)
        return _scaled(case, embedded_problems(), clients or 8, length)
    if name == "LENGTH":
        case = Case("LENGTH", endless_reasoner(models), [], 8, 8, 32, 3e-3, parity)
        return _scaled(case, embedded_problems(), clients or 2, length)
    if name == "E2":
        model, prompts = smollm2(models, medqa)
        return _scaled(Case("E2", model, [], 2, 8, 32, 1e-4, parity), prompts, clients or 4, length)
    if name == "E3":
        model = words_model(models / "wide-vocabulary", WIDE_VOCABULARY)
        prompts = word_prompts(WIDE_VOCABULARY["vocab_size"], 64, 16, 17)
        return _scaled(Case("E3", model, [], 4, 8, 128, 1e-4, parity), prompts, clients or 1, length)
    if name == "TINY":  # for the tests
        model = words_model(models / "tiny", TINY)
        prompts = word_prompts(TINY["vocab_size"], 32, 6, 10)
        return _scaled(Case("TINY", model, [], 2, 8, 4, 1e-3, parity), prompts, clients or 2, length)
    raise ValueError(f"there is no case {name!r}; cases are {', '.join(NAMES)}")


def _scaled(case: Case, problems: Sequence[Problem], clients: int, length: int | None) -> Case:
    pools = [problems[i::clients] for i in range(clients)]
    return replace(case, pools=pools, max_new_tokens=length or case.max_new_tokens)


def embedded_problems() -> list[Problem]:
    """4,096 embedded training problems of all families and levels, mixed."""
    problems = load("embedded", None, "train", size=256, seed=0)
    random.Random(0).shuffle(problems)
    return problems


def endless_reasoner(models: Path) -> Path:
    """The embedded reasoner with the end token moved beyond its vocabulary."""
    from fedrlvr.zoo import weights_dir

    def write(directory: Path) -> None:
        from transformers import AutoTokenizer

        shutil.copy(weights_dir() / "model.safetensors", directory)
        tokenizer = AutoTokenizer.from_pretrained(weights_dir())
        tokenizer.add_special_tokens({"eos_token": NEVER})
        tokenizer.save_pretrained(directory)
        for file in ("config.json", "generation_config.json"):
            settings = json.loads((weights_dir() / file).read_text("utf-8"))
            settings["eos_token_id"] = tokenizer.eos_token_id
            (directory / file).write_text(json.dumps(settings, indent=1), "utf-8")

    return _once(models / "endless-reasoner", write)


def load_endless(model: ModelConfig) -> Base:
    """Load a case's base model, whose end token lies beyond its vocabulary, so that every response has full length.

    A run refuses such a model, because no response of it could end.
    """
    from transformers import AutoTokenizer

    from fedrlvr.policy import base

    end = AutoTokenizer.from_pretrained(model.name).eos_token_id
    with patch.object(base, "end_tokens", return_value=frozenset([end])):
        return base.load_base(model)


def smollm2(models: Path, medqa: Path | None) -> tuple[Path, list[Problem]]:
    """The 135M shape with its tokenizer, and prompts of 200 to 300 tokens under it."""
    vocabulary = SMOLLM2_135M["vocab_size"]
    if medqa is None:
        return words_model(models / "smollm2-words", SMOLLM2_135M), word_prompts(vocabulary, 64, 200, 301)
    questions = load("medqa", medqa, "test")
    directory = _once(
        models / "smollm2-medqa",
        lambda directory: _random_llama(
            directory, SMOLLM2_135M, _bpe_tokenizer([q.prompt for q in questions], vocabulary)
        ),
    )
    return directory, fitting(directory, questions, 64, 200, 300)


def fitting(model: Path, problems: Sequence[Problem], count: int, least: int, most: int) -> list[Problem]:
    """The first `count` problems whose prompts have between `least` and `most` tokens.

    Raises:
        ValueError: there are fewer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    kept = [p for p in problems if least <= len(tokenizer(p.prompt)["input_ids"]) <= most][:count]
    if len(kept) < count:
        raise ValueError(f"{len(kept)} prompts have {least} to {most} tokens; the case needs {count}. Give more data.")
    return kept


def word_prompts(vocabulary: int, count: int, least: int, most: int) -> list[Problem]:
    """`count` prompts of random words of `words_model`'s tokenizer, `least` to `most` - 1 tokens with the first one."""
    draw = random.Random(0)
    prompts = []
    for i in range(count):
        words = [f"w{draw.randrange(3, vocabulary)}" for _ in range(draw.randrange(least, most) - 1)]
        prompts.append(Problem(" ".join(words), "0", f"words-{i}", "words", "exact"))
    return prompts


def words_model(directory: Path, shape: dict[str, Any]) -> Path:
    """A random-weight Llama of this shape whose tokens are the words w3, w4, ..."""

    def write(directory: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        vocabulary = {word: i for i, word in enumerate((PAD, BOS, UNK))}
        vocabulary |= {f"w{i}": i for i in range(3, shape["vocab_size"])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        _random_llama(directory, shape, tokenizer)

    return _once(directory, write)


def _bpe_tokenizer(texts: Sequence[str], size: int) -> Any:
    """A byte-level BPE of exactly `size` tokens; a corpus that gives fewer is filled up with tokens no text has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(unk_token=UNK))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True) for token in (PAD, BOS, UNK)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for i in range(len(vocabulary), size):
        vocabulary[f"unused{i}"] = i
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in model["merges"]], unk_token=UNK))
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _random_llama(directory: Path, shape: dict[str, Any], tokenizer: Any) -> None:
    """Write a Llama of this shape, weights by seed 0, and its tokenizer with the end token beyond the vocabulary."""
    import torch
    from tokenizers import processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, unk_token=UNK, eos_token=NEVER, padding_side="left"
    )
    assert fast.eos_token_id == shape["vocab_size"]
    config = LlamaConfig(
        **shape,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)


def _once(directory: Path, write: Callable[[Path], None]) -> Path:
    """The directory, written whole if it is not there yet."""
    if not directory.is_dir():
        unfinished = directory.with_name(f".{directory.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(directory)
    return directory
