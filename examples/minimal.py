"""A whole federated GRPO run with nothing of fedrlvr beneath it but `rl/`, `policy/` and the problems.

Two clients, each with problems of its own; a round is: seat the global adapter, a few local GRPO steps, average.
No Flower, no config file, no checkpoint. Read it top to bottom to see what the package does; run it with

    python examples/minimal.py

Expect the rewards of both clients to rise from about 0.55 to about 0.9 within ten seconds (two CPU cores, 2026-11-21).
"""

import torch

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group, assign_advantages
from fedrlvr.seeds import stream
from fedrlvr.tasks import grade, load

ROUNDS, LOCAL_STEPS, PROBLEMS = 3, 4, 8
sampling = SamplingConfig(group_size=8, max_new_tokens=32)
train = TrainConfig(rounds=ROUNDS, local_steps=LOCAL_STEPS, problems_per_step=PROBLEMS)
RATE = 3e-3

# Two clients that share no problem and no family.
clients = {
    "school": load("embedded", None, "train", size=200, seed=0, families=["sum"], levels=["easy"]),
    "clinic": load("embedded", None, "train", size=200, seed=0, families=["dose"], levels=["easy"]),
}

base = load_base(ModelConfig(name="embedded"))
cohort = Cohort(base, LoraConfig(rank=8, alpha=16), EngineConfig())
adapter = cohort.fresh_adapter(seed=0)

for round_ in range(ROUNDS):
    # Down: every client starts from the global adapter; the cohort holds them side by side on one base model.
    cohort.seat(dict.fromkeys(clients, adapter))
    cohort.begin_training(train, sampling)

    for step in range(LOCAL_STEPS):
        cursor = (round_ * LOCAL_STEPS + step) * PROBLEMS
        problems = {name: held[cursor : cursor + PROBLEMS] for name, held in clients.items()}
        prompts = {name: [base.encode(p.prompt) for p in ps] for name, ps in problems.items()}
        seeds = {name: stream(0, name, round_, step) for name in clients}

        # G responses to each problem, each client with its own adapter.
        responses = cohort.sample(prompts, Decoding.of(sampling), seeds)

        # A verifiable reward: the answer is right or it is not.
        groups = {
            name: [Group(*item) for item in zip(problems[name], prompts[name], responses[name], strict=True)]
            for name in clients
        }
        for client_groups in groups.values():
            for group in client_groups:
                for response in group.responses:
                    response.reward = grade(response.text, group.problem.answer, group.problem.kind)
            assign_advantages(client_groups)

        # One clipped policy-gradient step per client, on its own responses.
        cohort.learn(groups, dict.fromkeys(clients, RATE))

        rewards = {name: sum(sum(g.rewards) for g in groups[name]) / (PROBLEMS * 8) for name in clients}
        print(f"round {round_ + 1} step {step + 1}  " + "  ".join(f"{n} {r:.2f}" for n, r in rewards.items()))

    # Up: the clients' adapters, and nothing else. FedIT: average the factors, here with equal weights.
    locals_ = [dict(local.tensors()) for local in cohort.adapters().values()]
    mean = {name: torch.stack([local[name] for local in locals_]).mean(dim=0) for name in locals_[0]}
    adapter = Adapter.from_tensors(mean, adapter.alpha)
