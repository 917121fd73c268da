"""A configuration looked at before it is run: its model, its data, and the memory it will need.

The model goes through the checks that a run starts with (`new_cohort`), the data through those of the loaders and
graders. Nothing is written and nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedrlvr.config import Config
from fedrlvr.errors import FedrlvrError
from fedrlvr.policy.choices import choices
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.memory import MemoryEstimate, estimate, frozen_parameters
from fedrlvr.reporting import units
from fedrlvr.reporting.doctor import Finding, free_memory
from fedrlvr.simulation.run import new_cohort
from fedrlvr.tasks import validate
from fedrlvr.tasks.deal import Dealt, check_dealt, deal, fit_prompts

MOST_GRADED = 2000
"""Gold answers of each holder that are graded; `fedrlvr validate` grades all."""
_LISTED = 3


def examine(config: Config) -> Iterator[Finding]:
    """Findings about a configuration, in the order in which they become known; a model of size takes a minute."""
    cohort: Cohort | None = None
    try:
        cohort = new_cohort(config)
        yield from _model(cohort)
    except FedrlvrError as error:
        yield Finding("model", "cannot be used", "problem", str(error))
    dealt: Dealt | None = None
    try:
        dealt = deal(config)
        yield from _data(dealt, config)
        check_dealt(dealt, config.data)
    except FedrlvrError as error:
        yield Finding("data", "cannot be used", "problem", str(error))
    if cohort is None or dealt is None:
        return
    try:
        lengths = _prompts(fit_prompts(dealt, cohort.base, config), cohort)
        longest = max(lengths)
        yield Finding(
            "prompts",
            f"up to {longest} tokens, and {config.sampling.max_new_tokens} of a response; the model takes "
            f"{cohort.base.max_length} together",
        )
        tests = max(len(client.test) for client in dealt.clients)
        yield from memory(
            estimate(cohort, config, longest_prompt=longest, test_problems=tests), cohort.base.device.type
        )
    except FedrlvrError as error:
        yield Finding("prompts", "do not fit", "problem", str(error))


def _model(cohort: Cohort) -> Iterator[Finding]:
    base = cohort.base
    parameters = sum(parameter.numel() for parameter in frozen_parameters(cohort))
    adapted = sum(cohort.stack.rank * sum(layer.weight.shape) for layer in cohort.stack.layers.values())
    yield Finding(
        "model",
        f"{base.name}: {type(base.model).__name__}, {units.count(parameters)} parameters in "
        f"{str(base.model.dtype).removeprefix('torch.')} on {base.device}",
    )
    template = "in its chat template" if base.chat else "as plain text, without a chat template"
    yield Finding("tokenizer", f"{units.count(base.vocabulary)} tokens; prompts are given {template}")
    yield Finding(
        "adapter",
        f"{len(cohort.stack.layers)} layers, {units.count(adapted)} parameters a client; it moves what is sampled, and "
        "sampling, training and the model alone agree",
    )
    for part, choice in choices(cohort).items():
        yield Finding(part, choice)
    if base.fused_experts:
        yield Finding("experts", "the routed experts are no linear layers, and are left as they are")
    slower = []
    if not base.packs:
        slower.append("in training each response has its prompt computed again")
    if not base.shares:
        slower.append("in sampling each response keeps its prompt's cache")
    if base.decoding == "own-unpadded":
        slower.append("prompts of unequal length are sampled one after another")
    if slower:
        advice = f"This architecture costs more time and memory than others: {'; '.join(slower)}."
        yield Finding("speed", type(base.model).__name__, "note", advice)


def _data(dealt: Dealt, config: Config) -> Iterator[Finding]:
    reward = dealt.clients[0].reward  # everybody's
    counts = {client.name: (len(client.train), len(client.test)) for client in dealt.clients}
    for name, problems in dealt.by_holder.items():
        train, test = counts.get(name, (len(problems), 0))
        value = f"{units.count(train)} training and {units.count(test)} held-out problems"
        value = value if name in counts else f"{units.count(train)} problems"
        verdict = validate(problems[:MOST_GRADED], reward, attacked=0)
        if verdict.unlabelled:
            value += f", {units.count(verdict.unlabelled)} of them without an answer"
        if len(problems) > MOST_GRADED:
            value += f"; the first {units.count(MOST_GRADED)} gold answers were graded"
        if failures := verdict.failures:
            listed = ", ".join(failure.id for failure in failures[:_LISTED])
            listed += ", ..." * (len(failures) > _LISTED)
            advice = (
                f"Gold answers that do not grade: {units.count(len(failures))} ({listed}). No response to these "
                "problems earns a reward. `fedrlvr validate` says why."
            )
            yield Finding(name, value, "note", advice)
        else:
            yield Finding(name, value)
        if name in counts and train < config.train.problems_per_step:
            advice = f"train.problems_per_step = {config.train.problems_per_step}: a step repeats problems of {name}."
            yield Finding(name, f"{train} training problems", "note", advice)


def _prompts(dealt: Dealt, cohort: Cohort) -> list[int]:
    lengths: list[int] = []
    for client in dealt.clients:
        prompts = [client.prompts.ask(problem) for problem in client.train]
        prompts += [client.prompts.ask(problem) for problem in client.test]
        lengths += [len(ids) for ids in cohort.base.encode_all(prompts)]
    return lengths


def memory(needed: MemoryEstimate, device: str) -> Iterator[Finding]:
    """The estimate against what the device has free; a GPU, or this machine's memory."""
    import psutil
    import torch

    if device == "cuda":
        free, held = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(), needed.weights
        room, peak = free, needed.peak
    else:
        held = int(psutil.Process().memory_info().rss)  # the weights are in it
        room, peak = free_memory() + held, held - needed.weights + needed.peak
    parts = {
        "weights": needed.weights,
        "adapters and optimizer": needed.adapters,
        f"sampling, {needed.rows} responses side by side": needed.sampling,
        f"training, {needed.tokens} tokens at a time": needed.training,
    }
    for name, size in parts.items():
        yield Finding("memory", f"{units.size(size)} {name}")
    value = f"about {units.size(peak)} at the peak, of {units.size(room)}"
    if peak > room:
        advice = (
            "The run does not fit. Lower engine.decode_rows (sampling) or engine.micro_batch_tokens (training), which "
            "cost time and change no result; set model.gradient_checkpointing = true; or use fewer clients a round."
        )
        yield Finding("memory", value, "problem", advice)
    elif peak > 0.8 * room:
        yield Finding("memory", value, "note", "That is close: other programs may take what is missing.")
    else:
        yield Finding("memory", value)
