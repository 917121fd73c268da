"""E3: log-probs and gradient of 4,096 response tokens with a vocabulary of 151,936; peak memory of the learning step.

python -m benchmarks.vocabulary [--set engine.response_logits=false] [--case TINY]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import build, load_endless
from benchmarks.measure import Meter
from benchmarks.ours import config_of


def learn_once(case_name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Sample the case's responses and take one optimizer step on all of them; the step's cost.

    Returns the cost and the bytes of one chunk of logits and of all logits, [tokens x vocabulary] in float32.
    """
    from fedrlvr.policy.cohort import Cohort
    from fedrlvr.policy.sampler import Decoding
    from fedrlvr.rl import Group, assign_advantages

    case = build(case_name)
    config = config_of(case, settings)
    base = load_endless(config.model)
    cohort = Cohort(base, config.lora, config.engine)
    names = [f"client-{i}" for i in range(case.clients)]
    cohort.seat({name: cohort.fresh_adapter(i) for i, name in enumerate(names)})
    cohort.begin_training(config.train, config.sampling)
    problems = {name: case.draw(i, 0) for i, name in enumerate(names)}
    prompts = {name: [base.encode(p.prompt) for p in problems[name]] for name in names}
    drawn = cohort.sample(prompts, Decoding.of(config.sampling), {name: i for i, name in enumerate(names)})
    groups = {
        name: [Group(*item) for item in zip(problems[name], prompts[name], drawn[name], strict=True)] for name in names
    }
    for name in names:
        for group in groups[name]:
            # Alternating, so that every response has an advantage and is trained on.
            for i, response in enumerate(group.responses):
                response.reward = float(i % 2)
        assign_advantages(groups[name])
    rates = dict.fromkeys(names, case.learning_rate)
    vocabulary = base.model.get_input_embeddings().num_embeddings
    tokens = sum(len(r.token_ids) for client in groups.values() for group in client for r in group.responses)
    meter = Meter()
    meter.start(memory=True)
    stats = cohort.learn(groups, rates)
    trained = sum(s.ratios.tokens for s in stats.values())
    cost = meter.stop(tokens, trained, {})
    chunk = max(1, config.engine.logits_at_once // vocabulary) * vocabulary * 4
    return {**cost.to_json(), "chunk": chunk, "whole": tokens * vocabulary * 4, "vocabulary": vocabulary}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the step's cost as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="E3")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    print(json.dumps(learn_once(chosen.case, chosen.set)))


if __name__ == "__main__":
    main()
