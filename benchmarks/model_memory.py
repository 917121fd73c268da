"""What a run holds on its device, part by part, at the shapes of three real models: the estimate of `fedrlvr doctor`.

    scripts/bench model_memory                              the table of docs/real-model.md; a minute, 3 GB of memory
    scripts/bench model_memory --measure models/smollm2     a model's measured peaks beside the estimate; a minute

Every part grows linearly with the number of layers, so a model of one layer and one of two, both at full width, give it
for any depth. Their vocabulary is small, and what a larger one adds is counted. Their weights are zeros, since only
bytes are counted; nothing is downloaded.

With --measure one client of a model on this machine's CPU takes a step of two problems with four responses each, of 128
tokens as the prompts are, in float32. The largest resident memory of each phase is read (Linux), less what was resident
before it.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import torch

from benchmarks.measure import machine, peak_resident, reset_peak, resident, today
from benchmarks.tables import table
from fedrlvr.adapter import Adapter
from fedrlvr.config import Config, parse_config
from fedrlvr.policy.attention import use_own_attention
from fedrlvr.policy.base import Base, load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.memory import MemoryEstimate, estimate
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group
from fedrlvr.tasks.problem import Question

SHAPES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "llama",
        30,
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-1.5B": (
        "qwen2",
        28,
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-7B": (
        "qwen2",
        28,
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    ),
}
"""Architecture, layers and widths, from the models' config.json."""
PROMPT, TEST = 512, 64
"""Tokens of the longest prompt, and held-out problems of a client."""
CLIENTS = (1, 4)
VOCABULARY = 2048
"""Tokens of the small vocabulary: enough for engine.logits_at_once to be the limit in training, as with a large one."""
PARTS = ("weights", "adapters", "sampling", "training")


def configuration(clients: int, *, checkpointing: bool) -> Config:
    """A run of the usual size: rank 16, four problems of eight responses of 512 tokens in a step."""
    return parse_config(
        {
            "federation": {"clients": clients},
            "lora": {"rank": 16, "alpha": 32},
            "sampling": {"group_size": 8, "max_new_tokens": 512},
            "train": {"problems_per_step": 4},
            "model": {"gradient_checkpointing": checkpointing},
            "engine": {"micro_batch_tokens": 16384},  # as on a GPU
        }
    )


def shallow(name: str, layers: int, config: Config) -> Cohort:
    """A cohort without clients on a model of that many layers, in bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, _, shape = SHAPES[name]
    small = {**shape, "vocab_size": VOCABULARY, "num_hidden_layers": layers, "max_position_embeddings": 8192}
    settings = AutoConfig.for_model(kind, **small)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    model.tie_weights()
    use_own_attention(model)
    if config.model.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    base = Base(
        model=model,
        tokenizer=None,
        name=name,
        device=torch.device("cpu"),
        pad_id=0,
        eos_ids=frozenset({1}),
        max_length=8192,
        checkpointing=config.model.gradient_checkpointing,
        packs=True,
        shares=True,
        plain_head=True,
    )
    return Cohort(base, config.lora, config.engine)


def with_clients(cohort: Cohort, config: Config) -> MemoryEstimate:
    """The estimate of a configuration on this model as it is."""
    clients: dict[str, Adapter] = {client: cohort.fresh_adapter(0) for client in config.federation.names}
    cohort.seat(clients)
    cohort.begin_training(config.train, config.sampling)
    return estimate(cohort, config, longest_prompt=PROMPT, test_problems=TEST)


def of_model(name: str, *, checkpointing: bool) -> dict[int, MemoryEstimate]:
    """The estimates at the model's own depth, from one layer and two, by number of clients."""
    configs = {clients: configuration(clients, checkpointing=checkpointing) for clients in CLIENTS}
    by_layers = []
    for layers in (1, 2):
        cohort = shallow(name, layers, configs[CLIENTS[0]])
        by_layers.append({clients: with_clients(cohort, config) for clients, config in configs.items()})
    _, depth, shape = SHAPES[name]
    more = shape["vocab_size"] - VOCABULARY
    embeddings = 2 * more * shape["hidden_size"] * (1 if shape["tie_word_embeddings"] else 2)
    estimates = {}
    for clients in CLIENTS:
        single, double = (of_clients[clients] for of_clients in by_layers)
        values = {field.name: getattr(single, field.name) for field in fields(MemoryEstimate)}
        for part in PARTS:
            values[part] += (depth - 1) * (getattr(double, part) - values[part])
        values["weights"] += embeddings
        values["sampling"] += 12 * single.rows * more  # a row's logits, their probabilities and one more copy
        estimates[clients] = MemoryEstimate(**values)
    return estimates


def measured(model: str) -> dict[str, tuple[int, int]]:
    """Estimated and measured bytes of each part for a model in a directory, in a process that has done nothing yet."""
    length = 128
    config = parse_config(
        {
            "federation": {"clients": 1},
            "lora": {"rank": 16, "alpha": 32},
            "model": {"name": model, "device": "cpu", "dtype": "float32"},
            "sampling": {"group_size": 4, "max_new_tokens": length},
            "train": {"problems_per_step": 2},
            "engine": {"threads": 1, "micro_batch_tokens": 16384},
        }
    )
    torch.set_num_threads(1)
    import transformers.models.auto.modeling_auto  # noqa: F401  # so that the weights' share holds no library

    peaks, before = {}, resident()
    cohort = Cohort(load_base(config.model), config.lora, config.engine)
    peaks["weights"] = resident() - before
    prompts = [[1 + (7 * i + j) % 97 for j in range(length)] for i in range(2)]
    cohort.seat({"client-1": cohort.fresh_adapter(0)})
    before = resident()
    reset_peak()
    decoding = Decoding(4, length, past_end=True)
    (drawn,) = cohort.sample({"client-1": prompts}, decoding, {"client-1": 0}).values()
    peaks["sampling"] = peak_resident() - before
    question = Question("", "", "", "exact")
    groups = [
        Group(question, ids, list(of), advantages=[1.0, -1.0, 1.0, -1.0])
        for ids, of in zip(prompts, drawn, strict=True)
    ]
    cohort.begin_training(config.train, config.sampling)
    before = resident()
    reset_peak()
    cohort.learn({"client-1": groups}, {"client-1": 1e-4})
    peaks["training"] = peak_resident() - before
    needed = estimate(cohort, config, longest_prompt=length, test_problems=0)
    return {part: (getattr(needed, part), peak) for part, peak in peaks.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="MODEL", help="directory of a model to measure")
    if model := parser.parse_args().measure:
        lines = [[part, *(f"{size / 1e6:,.0f}" for size in sizes)] for part, sizes in measured(model).items()]
        print(table(["part", "estimated, MB", "measured, MB"], lines))
        print(f"\n`scripts/bench model_memory --measure`, {today()}, {machine()}")
        return
    rows = []
    for name in SHAPES:
        results, checkpointed_results = (of_model(name, checkpointing=on) for on in (False, True))
        for clients in CLIENTS:
            result, checkpointed = results[clients], checkpointed_results[clients]
            sizes = [getattr(result, part) for part in PARTS] + [checkpointed.training, checkpointed.peak]
            rows.append([name, str(clients), *(f"{size / 1e9:.1f}" for size in sizes)])
    head = ["model", "clients", *PARTS, "training, checkpointed", "peak, checkpointed"]
    print(table(head, rows))
    print(f"\n`scripts/bench model_memory`, {today()}, {machine()}")


if __name__ == "__main__":
    main()
