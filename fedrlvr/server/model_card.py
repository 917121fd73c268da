"""The model card (README.md) and the prompt settings (prompt.json) of an exported adapter.

A card may be published, so it holds no path, no problem of the run, and of a federation across machines no client's
name and no client's number of problems. Foreign text is cleaned, and stands in code spans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrlvr.config import Config, PromptConfig
from fedrlvr.config.prompt_template import FIELDS, prompt_template
from fedrlvr.errors import CheckpointError, printable
from fedrlvr.files import read_json
from fedrlvr.reporting import units
from fedrlvr.reporting.scores import Comparison, client_numbers, difference, personal_scores, summarise
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.tasks import task_of
from fedrlvr.tasks.deal import instruction_of
from fedrlvr.tasks.extraction import wrap
from fedrlvr.tasks.problem import Column, Kind, Question
from fedrlvr.tasks.prompts import Prompt, Prompts, no_instruction
from fedrlvr.tasks.task import EXAMPLES
from fedrlvr.version import __version__

CARD, PROMPT = "README.md", "prompt.json"
"""Names of the two files in an exported directory."""
PROMPT_FORMAT = 2
"""Version of the format of prompt.json."""


@dataclass(frozen=True)
class CardFacts:
    """Facts of a run, and of its exported adapter.

    round: of the adapter. client: whose adapter it is; None for the global one. rank, alpha: of the adapter. records:
    lines of metrics.jsonl up to the round. problems: number of training problems by client; empty where it is unknown.
    deployed: the clients are organisations on their own machines. withdrawn: the way by which each client that has left
    was taken out of the run (`fedrlvr withdraw`).
    """

    config: Config
    round: int
    client: str | None
    rank: int
    alpha: float
    merged: bool
    records: Sequence[Mapping[str, Any]] = ()
    problems: Mapping[str, int] = field(default_factory=dict)
    deployed: bool = False
    withdrawn: Mapping[str, str] = field(default_factory=dict)

    @property
    def personal(self) -> bool:
        """Whether the adapter is a client's personal one."""
        return self.client is not None and self.config.personal.method.makes_adapters


def read_facts(
    directory: Path, config: Config, round_: int, client: str | None, *, rank: int, alpha: float, merged: bool
) -> CardFacts:
    """Facts of a run in `directory`. Files that are missing or damaged leave their part of the card out."""
    try:
        records = [record for record in read_metrics(directory) if record["round"] <= round_]
    except CheckpointError:
        records = []
    problems: dict[str, int] = {}
    deployed = False
    try:
        holdings = read_json(directory / "holdings.json")
        deployed = "train" not in holdings and "public" in holdings
        for name, _, count in holdings.get("train", ()):
            problems[str(name)] = problems.get(str(name), 0) + int(count)
    except (OSError, ValueError, TypeError, AttributeError):
        problems = {}
    if deployed and config.privacy.unit != "none":  # no client states its number
        problems = {}
    elif deployed:  # the number that each client last stated; the total of one client would be its own
        problems = {name: int(numbers.get("num-examples") or 0) for _, name, numbers in client_numbers(records)}
        problems = problems if len(problems) > 1 else {}
    problems = {name: count for name, count in problems.items() if name not in config.federation.withdrawn}
    withdrawn = {name: _way_out(directory, name) for name in config.federation.withdrawn}
    return CardFacts(config, round_, client, rank, alpha, merged, records, problems, deployed, withdrawn)


def _way_out(directory: Path, client: str) -> str:
    try:
        return str(read_json(directory / f"withdrawal-{client}.json")["how"])
    except (OSError, ValueError, TypeError, KeyError):
        return "unknown"


def documents(facts: CardFacts, rendered: Callable[[Prompt], str] | None) -> dict[str, str]:
    """The texts of README.md and prompt.json, by file name.

    rendered: a prompt in the chat template, with the prefill; None where prompts are not put into it.
    """
    asking = prompt_settings(facts, chat=rendered is not None)
    return {
        CARD: printable(_card(facts, asking, rendered), keep="\n"),
        PROMPT: json.dumps(asking, indent=2, ensure_ascii=False) + "\n",
    }


def prompt_settings(facts: CardFacts, *, chat: bool) -> dict[str, Any]:
    """The fields of prompt.json: how the model was asked in training.

    A field is null where the run's server does not know it: an organisation words its own prompts and grades by its own
    reward.
    """
    config, data, prompt = facts.config, facts.config.data, _prompt_of(facts)
    append = instruction_of(data, prompt)
    unknown = facts.deployed and prompt.instruction is None
    marks = [wrap("ANSWER", "exact"), wrap("ANSWER", "math"), "#### ANSWER"]
    return {
        "format": PROMPT_FORMAT,
        "fedrlvr": __version__,
        "chat": chat,
        "template_args": dict(prompt.template_args),
        "system": prompt.system,
        "template": prompt.template,
        "instruction": None if unknown else {kind: append(kind) for kind in task_of(data.name).kinds},
        "shots": [shot.model_dump() for shot in prompt.shots],
        "examples": prompt.examples,
        "prefill": prompt.prefill,
        "stop": list(prompt.stop),
        "answer_marks": None if facts.deployed or not data.graded_by_kind else marks,
        "sampling": config.sampling.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"}),
    }


def _prompt_of(facts: CardFacts) -> PromptConfig:
    """The run's settings of [prompt], with a client's own template where it deviates."""
    prompt, deviation = facts.config.prompt, facts.config.federation.deviations.get(facts.client or "")
    template = deviation.template if deviation else None
    return prompt if template is None else prompt.model_copy(update={"template": template})


def _card(facts: CardFacts, asking: Mapping[str, Any], rendered: Callable[[Prompt], str] | None) -> str:
    what = "a model with the LoRA adapter merged in" if facts.merged else "a LoRA adapter"
    adapter = "the personal adapter of one client" if facts.personal else "the adapter of one client"
    front = {
        "base_model": base_name(facts.config),
        **({"base_model_relation": "finetune"} if facts.merged else {}),
        "library_name": "transformers" if facts.merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["fedrlvr", "federated-learning", "reinforcement-learning", "rlvr", "lora"],
    }
    head = "\n".join(f"{key}: {json.dumps(printable_tree(value), ensure_ascii=False)}" for key, value in front.items())
    title = f"{what[2].upper()}{what[3:]} of the run {_code(facts.config.run.name)}"
    how = _HOW[facts.config.federation.arm]
    imitates = facts.config.supervision.type == "demonstrations"
    learning = (
        "supervised learning of given responses" if imitates else "reinforcement learning with verifiable rewards"
    )
    opening = (
        f"This directory holds {what}{'' if facts.client is None else f', {adapter}'}. It was trained with fedrlvr by "
        f"{learning}, {how}."
    )
    rows = "\n".join(f"| {name} | {text} |" for name, text in _rows(facts))
    parts = [
        f"---\n{head}\n---",
        f"# {title}",
        opening,
        f"| | |\n|---|---|\n{rows}",
        "## Scores",
        _scores(facts),
        "## How to ask the model",
        _asking(facts, asking, rendered),
    ]
    return "\n\n".join(parts) + "\n"


_HOW = {
    "federated": "by clients that do not pool their problems: each trains an adapter, and a server aggregates them",
    "local": "by one client alone, on its own problems",
    "central": "on the pooled problems of all clients",
}
"""How an arm trains, in the card's first sentence."""


def _rows(facts: CardFacts) -> list[tuple[str, str]]:
    config = facts.config
    federation, train, targets = config.federation, config.train, config.lora.targets
    named = _code(targets) if isinstance(targets, str) else ", ".join(map(_code, targets))
    rows = [
        ("base model", _code(base_name(config))),
        ("LoRA", f"rank {facts.rank}, alpha {facts.alpha:g}, targets {named}"),
        ("arm", federation.arm),
        ("rounds", f"{facts.round} of {train.rounds}, {train.local_steps} local steps each"),
        ("local step", f"{train.problems_per_step} problems x {config.sampling.group_size} responses"),
        ("supervision", _code(config.supervision.type)),
        ("coordination", _code(config.coordination.type)),
    ]
    if federation.arm == "federated":
        rows.append(("aggregation", f"{_code(config.aggregation.type)}, weights {_code(config.aggregation.weights)}"))
    if facts.client is not None:
        rows.append(("client", _code(facts.client)))
    if facts.personal:
        rows.append(("personal adapter", _code(config.personal.type)))
    if loss := next((record["privacy"] for record in reversed(facts.records) if "privacy" in record), None):
        rows.append(("differential privacy of a client", f"epsilon {loss['epsilon']:.3g}, delta {loss['delta']:g}"))
    data = f"task {_code(federation.task)} of each organisation" if facts.deployed else _code(config.data.name)
    return [
        *rows,
        ("data set", data),
        ("training problems", _problems(facts)),
        *([("clients that have withdrawn", _withdrawn(facts))] if facts.withdrawn else []),
        ("exported by", f"fedrlvr {__version__}"),
    ]


def _withdrawn(facts: CardFacts) -> str:
    """Number of clients that have left and, in a simulation, their names."""
    left = ", ".join(
        f"{'' if facts.deployed else f'{_code(name)} '}{_LEFT.get(how, 'by a way that is not known here')}"
        for name, how in facts.withdrawn.items()
    )
    return f"{len(facts.withdrawn)} of {len(facts.config.federation.names)}: {left}"


_LEFT = {
    "rewind": "its rounds trained again without it",
    "restart": "all rounds trained again without it",
    "subtract": "its part of each round subtracted, its indirect influence not",
}
"""What became of a client's part, by the way of its withdrawal."""


def _problems(facts: CardFacts) -> str:
    clients = len(facts.config.federation.present)
    if not facts.problems:
        return f"at {clients} clients; their number is not known here"
    total = f"{units.count(sum(facts.problems.values()))} at {clients} clients"
    if facts.deployed:
        return total
    return total + f" ({', '.join(f'{_code(name)} {units.count(count)}' for name, count in facts.problems.items())})"


def _scores(facts: CardFacts) -> str:
    config = facts.config
    scores = summarise(facts.records)
    personal = personal_scores(facts.records) if facts.personal else None
    lines: list[tuple[str, Comparison]] = []
    for scored, what in ((scores, "after" if personal is None else "global adapter, after"), (personal, "personal")):
        if scored is None:
            continue
        line = scored.overall
        if facts.client is not None:
            line = next(
                (line for line in scored.clients if line.client == facts.client), Comparison(None, None, None, None)
            )
        label = f"{what} round {scored.after_round}" if scored is scores else "personal adapter"
        lines.append((label, line))
    if not lines or all(line.before is None and line.after is None for _, line in lines):
        return "The run has no scores here."
    first = lines[0][1]
    table = [("before training", first.before), *((label, line.after) for label, line in lines)]
    rows = [f"| {label} | {units.count(e.n)} | {units.with_interval(e)} |" for label, e in table if e is not None]
    last = lines[-1][1].after
    holder = "the client's own" if facts.client is not None else "all clients'"
    how = "greedy decoding" if config.evaluate.temperature == 0 else f"temperature {config.evaluate.temperature:g}"
    held_out = "held-out" if config.evaluate.split == "test" else "validation"
    text = f"Pass@1 on {holder} {held_out} problems ({how}; mean over sources of problems), with 95 % intervals:\n\n"
    text += "\n".join(["| | problems | pass@1 |", "|---|---|---|", *rows])
    if first.before is not None and last is not None:
        change = units.points(difference(last, first.before))
        text += f"\n\nChange from before training to the last line: {change} percentage points."
    return text


def _asking(facts: CardFacts, asking: Mapping[str, Any], rendered: Callable[[Prompt], str] | None) -> str:
    data = facts.config.data
    task = task_of(data.name)
    kind: Kind = "math" if facts.deployed else data.options.get("kind", task.kinds[0])
    question = EXAMPLES["math"] if facts.deployed else task.example(kind)
    wording, unknown = _prompt_of(facts), asking["instruction"] is None
    append = no_instruction if unknown else instruction_of(data, wording)
    prompts = Prompts(wording.model_copy(update={"examples": 0}), append)
    columns = _columns(wording.template) if wording.template is not None else {}
    prompt = prompts.ask(Question(question, "made up", "", kind, columns=columns))
    if unknown:
        appended = "Each organisation appends an instruction of its own to its prompts, which is not known here."
    elif append(kind):
        appended = "An instruction was appended to each prompt (`instruction`, by the kind of the problem)."
    else:
        appended = "No instruction was appended to the prompts."
    marks = asking["answer_marks"]
    marked = (
        "Answers were read by a reward function that is not part of this directory."
        if marks is None
        else "The answer of a response stands in one of these marks: " + ", ".join(map(_code, marks)) + "."
    )
    used = "were put into the tokenizer's chat template" if rendered else "were not put into a chat template"
    shown = (
        f" Before each problem stood {asking['examples']} training problems with their answers, which are not in this "
        "directory; put examples of your own into `shots`."
        if asking["examples"]
        else ""
    )
    sentences = (
        f"`{PROMPT}` holds the settings with which the model was asked in training. Prompts {used}. {appended}{shown} "
        f"{marked}"
    )
    return "\n\n".join(
        [
            sentences,
            "A made-up problem, as the model reads it:",
            _block(rendered(prompt) if rendered else prompt.text + wording.prefill),
            "The same in Python, run in this directory:",
            _block(_program(facts, asking, question, kind), "python"),
        ]
    )


def _program(facts: CardFacts, asking: Mapping[str, Any], question: str, kind: str) -> str:
    """A program that asks the model one question by the settings in prompt.json."""
    name = json.dumps(printable(base_name(facts.config)), ensure_ascii=False)
    imports = ["import json", "from pathlib import Path", ""]
    if facts.merged:
        imports += ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        load = ['tokenizer = AutoTokenizer.from_pretrained(".")', 'model = AutoModelForCausalLM.from_pretrained(".")']
    else:
        imports += ["from peft import PeftModel", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        if facts.config.model.name == "embedded":
            imports[3:3] = ["from fedrlvr.zoo import weights_dir"]
            base = "base = str(weights_dir())"
        else:
            local = "  # the directory of the base model, wherever it lies" if facts.config.model.local else ""
            base = f"base = {name}{local}"
        load = [
            base,
            "tokenizer = AutoTokenizer.from_pretrained(base)",
            'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), ".")',
        ]
    if asking["template"] is not None:
        imports[2:2] = ["", "from jinja2.sandbox import ImmutableSandboxedEnvironment"]
    return "\n".join(
        [
            *imports,
            *load,
            f'asking = json.loads(Path("{PROMPT}").read_text("utf-8"))',
            f"question = {json.dumps(printable(question, keep=chr(10)), ensure_ascii=False)}",
            *_wording(asking, kind),
            'ids = tokenizer(text, add_special_tokens=not asking["chat"], return_tensors="pt")["input_ids"]',
            *_answering(asking),
        ]
    )


def _wording(asking: Mapping[str, Any], kind: str) -> list[str]:
    """Lines of the program that make `text`, what the model reads, of the question."""
    template = asking["template"]
    placed = template is not None and "instruction" in prompt_template(template).names
    lines = [f'instruction = (asking["instruction"] or {{}}).get("{kind}") or ""', "", "", "def worded(text):"]
    if template is not None:
        lines += [
            '    template = ImmutableSandboxedEnvironment().from_string(asking["template"])',
            f"    columns = {json.dumps(_columns(template))}",
            f'    text = template.render(**columns, prompt=text, kind="{kind}", instruction=instruction)',
        ]
    lines += ["    return text" if placed else '    return f"{text}\\n{instruction}" if instruction else text', "", ""]
    if asking["chat"]:
        turn = '{{"role": "{}", "content": {}}}'.format
        lines += [f"messages = [{turn('system', asking_of('system')) if asking['system'] else ''}]"]
        if asking["shots"]:
            lines += [
                'for shot in asking["shots"]:',
                f"    messages.append({turn('user', 'worded(shot[' + chr(34) + 'prompt' + chr(34) + '])')})",
                f"    messages.append({turn('assistant', 'shot[' + chr(34) + 'answer' + chr(34) + '].strip()')})",
            ]
        return [
            *lines,
            f"messages.append({turn('user', 'worded(question)')})",
            'how = {"tokenize": False, "add_generation_prompt": True, **asking["template_args"]}',
            'text = tokenizer.apply_chat_template(messages, **how) + asking["prefill"]',
        ]
    lines += [f"paragraphs = [{asking_of('system') if asking['system'] else ''}]"]
    if asking["shots"]:
        gap = "" if placed else ' + ("\\n" if instruction else "")'
        lines += [
            'for shot in asking["shots"]:',
            f'    paragraphs.append(worded(shot["prompt"]){gap} + shot["answer"])',
        ]
    return [*lines, 'text = "\\n\\n".join([*paragraphs, worded(question)]) + asking["prefill"]']


def _answering(asking: Mapping[str, Any]) -> list[str]:
    """Lines of the program that print the response to `ids`."""
    how = 'do_sample=False, max_new_tokens=asking["sampling"]["max_new_tokens"]'
    how += ', stop_strings=asking["stop"], tokenizer=tokenizer' if asking["stop"] else ""
    lines = [f"tokens = model.generate(ids, {how})"]
    lines += ["response = tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)"]
    if not asking["stop"]:
        return [*lines, 'print(asking["prefill"] + response)']
    ends = '[response.find(stop) + len(stop) for stop in asking["stop"] if stop in response]'
    return [*lines, f"ends = {ends}", 'print(asking["prefill"] + response[: min(ends, default=len(response))])']


def _columns(template: str) -> dict[str, Column]:
    """Made-up values of the columns that a template needs."""
    return {name: name.upper() for name in sorted(prompt_template(template).required - set(FIELDS))}


def asking_of(name: str) -> str:
    """The program's expression for a field of prompt.json."""
    return f'asking["{name}"]'


def base_name(config: Config) -> str:
    """The base model's name for others: a hub id, or the last part of a directory's path."""
    name = config.model.name
    return Path(name).name if config.model.local else name


def printable_tree(value: Any) -> Any:
    """The value with every text in it made printable."""
    return [printable_tree(item) for item in value] if isinstance(value, list) else printable(str(value))


def _code(text: str) -> str:
    """Foreign text in a code span, which Markdown does not read and a table's cell holds."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', '/')}`"


def _block(text: str, language: str = "text") -> str:
    """Text in a fence that is longer than any within."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{printable(text, keep=chr(10))}\n{fence}"
