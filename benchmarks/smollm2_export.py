"""Part `export` of `scripts/bench smollm2`: an exported adapter gives its greedy answers in other software too.

The answers to held-out problems, drawn greedily, of three: the trained policy as fedrlvr samples it; the exported
adapter on the base model in plain PEFT; the merged weights in plain transformers. The last two call `generate`, one
prompt at a time, and nothing of fedrlvr but for the prompts' token ids and the end of a response.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.export import export_adapter, export_merged
from fedrlvr.policy.model_check import directory_of
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl.samples import CORRECT
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.simulation.run import new_cohort
from fedrlvr.tasks.deal import deal, fit_prompts
from fedrlvr.tasks.rewards import score

PROBLEMS = 50


def same_answers(run: Path, problems: int = PROBLEMS) -> dict[str, Any]:
    """Greedy answers of a finished run's adapter: how many are the same in PEFT and merged, and how many are right.

    problems: held-out ones, of all clients in turn.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    saved = open_run(run)
    adapter, config = saved.adapter(), saved.config
    cohort = new_cohort(config)
    base, limit = cohort.base, config.sampling.max_new_tokens
    clients = fit_prompts(deal(config), base, config).clients
    turns = itertools.zip_longest(*([(client, problem) for problem in client.test] for client in clients))
    asked = [pair for turn in turns for pair in turn if pair is not None][:problems]
    prompts = base.encode_all([client.prompts.ask(problem) for client, problem in asked])
    answers = {"fedrlvr": _ours(cohort, adapter, prompts, limit)}
    cohort.stack.remove()
    with tempfile.TemporaryDirectory() as place:
        plain: Any = AutoModelForCausalLM.from_pretrained(directory_of(config.model), dtype=base.model.dtype)
        checks = {"peft": export_adapter(adapter, config.model, config.lora, Path(place) / "peft")}
        answers["peft"] = _plain(PeftModel.from_pretrained(plain, Path(place) / "peft"), base, prompts, limit)
        checks["merged"] = export_merged(adapter, config.model, config.lora, Path(place) / "merged")
        merged = AutoModelForCausalLM.from_pretrained(Path(place) / "merged", dtype=base.model.dtype)
        answers["merged"] = _plain(merged, base, prompts, limit)
    return {
        "problems": len(asked),
        "rounds": saved.adapter_round,
        "same": {name: sum(map(str.__eq__, answers["fedrlvr"], answers[name])) for name in checks},
        "right": {
            name: sum(
                score(client.reward, problem, [text])[0] >= CORRECT
                for (client, problem), text in zip(asked, texts, strict=True)
            )
            for name, texts in answers.items()
        },
        "difference": {name: check.difference for name, check in checks.items()},
    }


def _ours(cohort: Cohort, adapter: Any, prompts: Sequence[list[int]], limit: int) -> list[str]:
    cohort.seat({"policy": adapter})
    drawn = cohort.sample({"policy": prompts}, Decoding(1, limit, temperature=0.0), {"policy": 0})
    return [response.text for (response,) in drawn["policy"]]


@torch.no_grad()
def _plain(model: Any, base: Base, prompts: Sequence[list[int]], limit: int) -> list[str]:
    """Texts of `generate`, greedy, cut where a response ends."""
    texts = []
    for ids in prompts:
        given = torch.tensor([ids])
        drawn = model.eval().generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=sorted(base.eos_ids),
            pad_token_id=min(base.eos_ids),
        )
        texts.append(base.decode(drawn[0, len(ids) :].tolist()))
    return texts
