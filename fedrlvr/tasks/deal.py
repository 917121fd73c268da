"""Division of the problems that the config's data section names among the clients: load, split, check, deal."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fedrlvr.config import Asking, Config, DataConfig
from fedrlvr.config.federation import Deviation
from fedrlvr.config.problems import RewardConfig
from fedrlvr.config.prompt import Wording
from fedrlvr.errors import ConfigError, DataError
from fedrlvr.output import logger
from fedrlvr.seeds import stream
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.deviations import DeviantReward, contradicting, reworded, with_wrong_labels
from fedrlvr.tasks.golds import check_golds
from fedrlvr.tasks.load import load, task_of
from fedrlvr.tasks.partition import Holding, by_source, partition, who_holds_what
from fedrlvr.tasks.problem import Kind, Problem, Question
from fedrlvr.tasks.prompts import Instruction, Prompts
from fedrlvr.tasks.rewards import Reward, Rewards, rewards_for
from fedrlvr.tasks.splits import check_disjoint, drop_overlap, sample, set_aside

if TYPE_CHECKING:
    from fedrlvr.policy.base import Base

_log = logger("tasks")

CENTRAL = "central"
_PUBLIC = "the public set"


@dataclass(frozen=True)
class Dealt:
    """Problems by client. `public` is in no client's hands."""

    clients: list[ClientData]
    public: list[Problem]
    train_table: list[Holding]
    test_table: list[Holding]

    @property
    def by_holder(self) -> dict[str, list[Problem]]:
        """All problems with their answers, by the name of who holds them: a client or "the public set"."""
        held = {client.name: _all_of(client) for client in self.clients}
        return held | ({_PUBLIC: self.public} if self.public else {})

    @property
    def digest(self) -> str:
        """Hash of every client's problems, in order: two runs with one digest train and test on the same."""
        digest = hashlib.sha256()
        held = [(client.name, _all_of(client)) for client in self.clients]
        for name, problems in [*held, ("", self.public)]:
            for problem in problems:
                row: list[Any] = [name, problem.id, problem.prompt, problem.answer, problem.source]
                row += [problem.messages] * bool(problem.messages) + [dict(problem.columns)] * bool(problem.columns)
                digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def deal(config: Config) -> Dealt:
    """Load the problems and deal them to the config's clients (to one client, in the arm `central`).

    Raises:
        ConfigError, DataError, GradingError: as the loaders, graders and partitions say.
    """
    data, seed = config.data, config.run.seed
    train, public, validation, test = _apart(config)
    train = _sample(train, data.train_size, stream(seed, "train"))
    check_disjoint(train=train, public=public, validation=validation, test=test)
    train, validation, test = _as_clients_hold(config, train, validation, test)
    names = config.federation.names
    if config.federation.arm == "central":
        names, train = [CENTRAL], _of_training_clients(config, train)
    parts = _parts(config, train, names)
    held_out, chosen_on = deal_like(parts, test), deal_like(parts, validation)
    for needs, setting, needy in (
        (config.evaluate.split == "validation", "evaluate.split = 'validation'", names),
        (len(config.run.alone_rates) > 1, "run.alone_rates", config.federation.training),
        (config.personal.method.mixes, f"personal.type = {config.personal.type!r}", config.federation.training),
    ):
        if needs and (lacking := [name for name in needy if not chosen_on[name]]):
            raise DataError(
                f"{setting}: {', '.join(lacking)} without validation problems. Raise data.validation_size, which is "
                f"{data.validation_size}."
            )
    rewards = _rewards(config, data.rewards)
    deviations = config.federation.deviations
    of_others = {name: stated.contradicts for name, stated in deviations.items() if stated.contradicts}
    parts |= {name: contradicting(name, parts[other]) for name, other in of_others.items()}
    if data.train_on_public:
        parts = {name: [*held, *public] for name, held in parts.items()}
    instruction = instruction_of(data, config.prompt)
    ranks = config.lora.rank if isinstance(config.lora.rank, dict) else {}
    clients = [
        ClientData.of(
            name,
            parts[name],
            held_out[name],
            rewards.verifier,
            training_reward=_training_reward(config, rewards, name, parts[name], stated),
            wording=config.prompt,
            instruction=instruction,
            seed=seed,
            validation=chosen_on[name],
            rank=ranks.get(name),
            free_rider=stated.free_rider,
            ledger=_ledger(config, name),
            run=config.run.directory.name if config.run.directory else "",
        )
        for name in names
        for stated in (deviations.get(name, Deviation()),)
    ]
    return Dealt(clients, public, who_holds_what(parts), who_holds_what(held_out))


def _parts(config: Config, train: Sequence[Problem], names: Sequence[str]) -> dict[str, list[Problem]]:
    """The training problems by client, as the configuration divides them."""
    alpha = getattr(config.partition, "alpha", 1.0)
    kind = "iid" if len(names) == 1 else config.partition.type
    return partition(train, names, type=kind, alpha=alpha, seed=config.run.seed)


def _as_clients_hold(config: Config, train: list[Problem], *held_out: list[Problem]) -> list[list[Problem]]:
    """Training and held-out problems, in order, as the clients that deviate hold them, also where they are pooled."""
    deviations = config.federation.deviations
    if any(stated.wrong_labels for stated in deviations.values()) and not task_of(config.data.name).takes_labels:
        raise ConfigError(
            f"federation.deviations: the problems of {config.data.name} are scored without a label, so wrong_labels "
            "has no effect. Leave it out."
        )
    parts = _parts(config, train, config.federation.names) if deviations else {}
    shares = [parts, *(deal_like(parts, problems) if parts else {} for problems in held_out)]
    seed = config.run.seed
    for name, stated in deviations.items():
        shares[0][name] = with_wrong_labels(name, shares[0][name], stated.wrong_labels, seed)
        for share in shares:
            share[name] = [reworded(problem, stated.template) for problem in share[name]]
    held = [{problem.id: problem for share in of_split.values() for problem in share} for of_split in shares]
    return [[new.get(p.id, p) for p in problems] for problems, new in zip((train, *held_out), held, strict=True)]


def _of_training_clients(config: Config, train: list[Problem]) -> list[Problem]:
    """The training problems, in order, without those of the clients that are excluded."""
    if not config.federation.excluded:
        return train
    parts = _parts(config, train, config.federation.names)
    left_out = {problem.id for client in config.federation.excluded for problem in parts[client]}
    return [problem for problem in train if problem.id not in left_out]


def _rewards(config: Config, entries: Sequence[RewardConfig]) -> Rewards:
    return rewards_for(entries, arithmetic=config.data.arithmetic, directory=config.run.started_in)


def _training_reward(
    config: Config, rewards: Rewards, client: str, problems: Sequence[Problem], stated: Deviation
) -> Reward:
    """The reward of a client's training responses, as its deviation states it."""
    reward = (_rewards(config, stated.rewards) if stated.rewards else rewards).training
    if not stated.deviates_in_rewards:
        return reward
    shares = {"unsolvable": stated.unsolvable, "flipped": stated.flipped_rewards}
    return DeviantReward(reward, client, problems, **shares, seed=config.run.seed)


def check_dealt(dealt: Dealt, data: DataConfig) -> None:
    """Report gold answers that no marked answer can match, where problems are graded by kind.

    Raises:
        DataError: more than the share data.unreachable_golds.
    """
    if data.graded_by_kind:
        check_golds(dealt.by_holder, data.unreachable_golds)


def _all_of(client: ClientData) -> list[Problem]:
    """Every problem of a client."""
    return [*client.answers.everything(), *client.validation, *client.test]


def _apart(config: Config) -> tuple[list[Problem], list[Problem], list[Problem], list[Problem]]:
    """Problems for training, public, validation and held-out ones."""
    data = config.data
    train, test = _load_both(data, unlabelled=config.supervision.unlabelled)
    test = _sample(test, data.test_size, stream(0, "test"))  # the same held-out problems for every seed
    train, public = set_aside(drop_overlap(train, test), data.public_size, config.run.seed, setting="data.public_size")
    train, validation = _set_validation_aside(train, data, config.run.seed)
    return train, public, validation, test


def _set_validation_aside(train: Sequence[Problem], data: DataConfig, seed: int) -> tuple[list[Problem], list[Problem]]:
    return set_aside(train, data.validation_size, stream(seed, "validation"), setting="data.validation_size")


def public_problems(config: Config, base: Base) -> list[Problem]:
    """The public problems that `deal` and `fit_prompts` set aside, for a server that deals nothing.

    Raises:
        ConfigError, DataError: as these.
    """
    _, public, _, _ = _apart(config)
    if config.data.graded_by_kind:
        check_golds({_PUBLIC: public}, config.data.unreachable_golds)
    return _public_that_fit(public, base, config)


def own_problems(
    data: DataConfig, *, unlabelled: bool, seed: int
) -> tuple[list[Problem], list[Problem], list[Problem]]:
    """One organisation's problems from a data section of its own: for training, for validation, and held-out ones.

    Raises:
        ConfigError, DataError, GradingError: as the loaders say.
    """
    train, test = _load_both(data, unlabelled=unlabelled)
    test = _sample(test, data.test_size, stream(0, "test"))
    train, validation = _set_validation_aside(drop_overlap(train, test), data, seed)
    train = _sample(train, data.train_size, stream(seed, "train"))
    check_disjoint(train=train, validation=validation, test=test)
    return train, validation, test


def other_problems(data: DataConfig, prompts: Prompts, base: Base, longest: int) -> list[Problem]:
    """The held-out problems of a task that nobody trains on. longest: of a response, in tokens.

    Raises:
        ConfigError, DataError: as the loaders say, or a prompt does not fit the model.
    """
    _, options = task_of(data.name).options_of(data)
    test = _sample(load(data.name, data.path, "test", **options), data.test_size, stream(0, "test"))
    place = "evaluate.also.task"
    fitting = [p for p in test if _fits(p, place, prompts, base, data.max_prompt_tokens, longest)]
    if not fitting:
        raise DataError(f"{place}: no problem has at most max_prompt_tokens = {data.max_prompt_tokens} tokens.")
    return fitting


def instruction_of(data: DataConfig, wording: Wording) -> Instruction:
    """Kind of problem -> what is appended to its prompts: the configuration's instruction, or else the task's own."""
    stated = wording.instruction
    return task_of(data.name).instruction if stated is None else lambda kind: stated


def written_instruction(data: DataConfig, wording: Wording) -> str | None:
    """The instruction, as TOML, that these problems need once they are files of the task `jsonl`.

    None: the default of `jsonl` appends the same sentences.
    """
    here, default = instruction_of(data, wording), task_of("jsonl").instruction
    kinds = get_args(Kind)
    if all(here(kind) == default(kind) for kind in kinds):
        return None
    return json.dumps(here(kinds[0]), ensure_ascii=False)


def _ledger(config: Config, client: str) -> Path | None:
    """Where a client's labels are kept; None where it pays for none, or before the run has a directory."""
    asks = isinstance(config.supervision, Asking)
    return config.ledger_file(config.run.directory, client) if asks and config.run.directory else None


def deal_like(parts: Mapping[str, Sequence[Problem]], problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Deal held-out problems in the proportions in which the clients hold each source for training.

    So each client is tested on what it trains on. A source no client trains on is dealt evenly.
    """
    dealt: dict[str, list[Problem]] = {client: [] for client in parts}
    held = {client: {s: len(ps) for s, ps in by_source(part).items()} for client, part in parts.items()}
    for source, matching in by_source(problems).items():
        shares = {client: held[client].get(source, 0) for client in parts}
        if not any(shares.values()):
            shares = dict.fromkeys(parts, 1)
        start, reached, total = 0, 0, sum(shares.values())
        for client, share in shares.items():
            reached += share
            end = round(len(matching) * reached / total)
            dealt[client].extend(matching[start:end])
            start = end
    return dealt


def fit_prompts(dealt: Dealt, base: Base, config: Config) -> Dealt:
    """Leave out problems whose prompts are longer than `data.max_prompt_tokens`; how many is logged.

    Raises:
        DataError: a prompt and its longest response do not fit the model, or a client is left without problems; the
            text names the client.
    """
    limit, longest = config.data.max_prompt_tokens, config.sampling.max_new_tokens
    clients = [fit_client(client, base, limit, longest) for client in dealt.clients]
    public = _public_that_fit(dealt.public, base, config)
    train_table = who_holds_what({client.name: client.train for client in clients})
    return Dealt(clients, public, train_table, who_holds_what({client.name: client.test for client in clients}))


def fit_client(client: ClientData, base: Base, limit: int | None, longest: int) -> ClientData:
    """A client's data without the problems whose prompts have more than `limit` tokens.

    longest: of a response, in tokens.

    Raises:
        DataError: as `fit_prompts`.
    """
    fit = partial(_fits, holder=client.name, prompts=client.prompts, base=base, limit=limit, longest=longest)
    train = [problem for problem in client.train if fit(problem)]
    validation = [problem for problem in client.validation if fit(problem)]
    test = [problem for problem in client.test if fit(problem)]
    held_out = len(client.validation) + len(client.test) - len(validation) - len(test)
    dropped = len(client.train) - len(train), held_out
    if any(dropped):
        _log.info("%s: left out %d training and %d held-out problems with long prompts", client.name, *dropped)
    if not train:
        raise DataError(
            f"{client.name}: no training problem has at most data.max_prompt_tokens = {limit} tokens. Raise it."
        )
    return replace(client, train=train, validation=validation, test=test)


def _public_that_fit(problems: Sequence[Problem], base: Base, config: Config) -> list[Problem]:
    limit, longest = config.data.max_prompt_tokens, config.sampling.max_new_tokens
    prompts = Prompts(config.prompt, instruction_of(config.data, config.prompt))
    public = [p for p in problems if _fits(p, _PUBLIC, prompts, base, limit, longest)]
    if len(public) < len(problems):
        _log.info("left out %d public problems with long prompts", len(problems) - len(public))
    if (least := getattr(config.coordination, "public_problems", 0)) > len(public):
        raise DataError(
            f"{len(public)} public problems have at most data.max_prompt_tokens = {limit} tokens, and "
            f"coordination.public_problems = {least} are needed. Raise data.max_prompt_tokens or data.public_size."
        )
    return public


def _fits(
    problem: Problem | Question, holder: str, prompts: Prompts, base: Base, limit: int | None, longest: int
) -> bool:
    """Whether a problem's prompt has at most `limit` tokens."""
    room = base.max_length - longest
    if limit is not None and limit > room:
        raise DataError(
            f"data.max_prompt_tokens = {limit} and sampling.max_new_tokens = {longest} exceed the model's "
            f"{base.max_length} positions. Lower one of them."
        )
    length = len(base.encode(prompts.ask(problem)))
    if limit is None and length > room:
        raise DataError(
            f"{holder}: the prompt of problem {problem.id!r} has {length} tokens, which with sampling.max_new_tokens = "
            f"{longest} exceeds the model's {base.max_length} positions. Lower max_new_tokens, or leave long problems "
            "out with data.max_prompt_tokens."
        )
    return limit is None or length <= limit


def _load_both(data: DataConfig, *, unlabelled: bool) -> tuple[list[Problem], list[Problem]]:
    """Train (public problems still among them) and test.

    unlabelled: training problems of the user's own need no answer.
    """
    if "unlabelled" in data.options:
        raise ConfigError("data.options.unlabelled: it follows from supervision.labels_from = 'desk'; leave it out.")
    task = task_of(data.name)
    if unlabelled and not task.takes_labels:
        raise ConfigError(
            f"data.name: the problems of {data.name} are scored without a label, so nobody is to be asked for one."
        )
    train, test = task.options_of(data)
    return (
        load(data.name, data.path, "train", unlabelled=unlabelled, **train),
        load(data.name, data.path, "test", unlabelled=unlabelled, **test),
    )


def _sample(problems: list[Problem], size: int | None, seed: int) -> list[Problem]:
    """`size` of the problems, spread over sources in proportion; all of them if None or if there are no more."""
    if size is None or size >= len({problem.content_key for problem in problems}):
        return problems
    order = list(problems)
    random.Random(seed).shuffle(order)
    return sample(order, size, seed)
