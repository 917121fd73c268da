"""The audit of a run by whoever holds its clients' training problems: in a simulation, or at a site for itself.

    server   has each client's own adapter of the newest round, where the run keeps them (`aggregation.keep_adapters`)
    site     another site, which has the global adapter
    public   can ask the exported model, and sees its responses alone

Members are the problems that the client has drawn up to that round, and others are its held-out problems, which are of
the same sources. Nothing is sent, and no problem's score is written anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedrlvr.adapter import Adapter
from fedrlvr.audit.behaviour import Behaviour, behaviours
from fedrlvr.audit.canaries import Canary, CanaryResult, expose
from fedrlvr.audit.membership import VIEWS, Figures, ProblemScores, curve, problem_scores
from fedrlvr.config import Config
from fedrlvr.errors import ConfigError, DataError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import in_model_order
from fedrlvr.policy.sampler import Decoding
from fedrlvr.privacy.private_text import PrivateText
from fedrlvr.seeds import stream
from fedrlvr.server.kept_adapters import KeptAdapters
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.server.run_directory import is_deployed
from fedrlvr.server.saved_adapter import SavedRun
from fedrlvr.server.withdrawal import rounds_of
from fedrlvr.simulation.run import new_cohort, with_secrets
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.deal import deal, fit_prompts
from fedrlvr.tasks.problem import Problem

WORDS, DIGITS = 8, 8
"""Words in a row and digits of a number by which a response counts as private text: the defaults of `[egress]`."""


@dataclass(frozen=True)
class AuditSettings:
    """Size of an audit: problems of each client and side, responses to each problem and to each canary."""

    problems: int = 200
    responses: int = 8
    canary_responses: int = 64


@dataclass(frozen=True)
class Trained:
    """One client's way through a run.

    adapters: by view; draws: training problems that it has drawn, repeats included.
    """

    adapters: Mapping[str, Adapter]
    draws: int


@dataclass
class Audit:
    """Result of an audit. scores: of the problems by view and attack, kept in memory alone."""

    round: int
    clients: list[str]
    scores: dict[tuple[str, str], ProblemScores] = field(default_factory=dict, repr=False)
    canaries: dict[str, list[CanaryResult]] = field(default_factory=dict)
    returned: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Numbers by view: responses with private text, and all responses, to problems that are not private."""
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> dict[tuple[str, str], Figures]:
        """Figures of the attacks, by view and attack."""
        return {key: Figures.of(scores) for key, scores in self.scores.items()}

    def curves(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """The ROC curves by view and attack."""
        views: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for (view, attack), scores in self.scores.items():
            views.setdefault(view, {})[attack] = curve(scores)
        return views

    def to_json(self) -> dict[str, Any]:
        """The content of audit.json: figures alone, without a problem, a response or a problem's score."""
        return {
            "round": self.round,
            "clients": self.clients,
            "membership": [
                {"view": view, "attack": attack, **figures.to_json()}
                for (view, attack), figures in self.figures.items()
            ],
            "canaries": {view: [result.to_json() for result in results] for view, results in self.canaries.items()},
            "returned": {view: {"responses": n, "private": hits} for view, (hits, n) in self.returned.items()},
            "notes": self.notes,
        }


def audit_run(run: SavedRun, settings: AuditSettings, canaries: Sequence[Canary] = ()) -> Audit:
    """The audit of a simulated run, at the round of its checkpoint.

    Raises:
        FedrlvrError: as `trained_clients`, and as loading, sampling and grading say.
    """
    trained = trained_clients(run)
    audit = audit_clients(run.config, trained, settings, canaries, run.adapter_round)
    if not all("server" in client.adapters for client in trained.values()):
        audit.notes.append(
            "What the server sees was not attacked for all clients, since their own adapters are not on disk: set "
            "aggregation.keep_adapters = true before a run."
        )
    return audit


def trained_clients(run: SavedRun) -> dict[str, Trained]:
    """The clients of a simulated run by name, with their adapters of the checkpoint.

    Raises:
        ConfigError: the clients' problems are elsewhere, or the arm has no global adapter of several clients.
        FedrlvrError: an adapter or metrics.jsonl cannot be read.
    """
    config, place = run.config, run.directory
    if is_deployed(place):
        raise ConfigError(
            f"{place}: this run's clients are organisations on their own machines, and so are their problems. Each "
            "organisation audits the global adapter with `fedrlvr site audit`."
        )
    if config.federation.arm != "federated" or config.personal.method.keeps is not None:
        raise ConfigError(f"{place}: an audit attacks the adapter that all clients of a federated run share.")
    round_, records = run.adapter_round, read_metrics(place)
    shared, kept = run.adapter(), KeptAdapters(place)
    stored = kept.load(round_).adapters if round_ in kept.clients() else {}
    train, trained = config.train, {}
    for client in config.federation.training:
        rounds = [number for number in rounds_of(records, client) if number <= round_]
        of_client = {"server": stored[client]} if client in stored else {}
        draws = len(rounds) * train.local_steps * train.problems_per_step
        trained[client] = Trained({**of_client, "site": shared}, draws)
    return trained


def audit_clients(
    config: Config, trained: Mapping[str, Trained], settings: AuditSettings, canaries: Sequence[Canary], round_: int
) -> Audit:
    """The audit of these clients, whose problems the configuration deals.

    Raises:
        ConfigError: a canary is of no such client. DataError: a client has no held-out problems or drew none.
        FedrlvrError: as loading, sampling and grading say.
    """
    if strangers := {canary.client for canary in canaries} - set(trained):
        raise ConfigError(f"--canaries: {', '.join(sorted(strangers))} did not train in this run.")
    where = config.run.model_copy(update={"directory": None, "ledgers": None})  # so that no ledger is opened
    config = config.model_copy(update={"run": where})
    cohort = _cohort(config, trained)
    like = cohort.fresh_adapter(0)
    trained = {
        name: replace(
            client,
            adapters={v: in_model_order(a, like.at_rank(a.rank), place=name) for v, a in client.adapters.items()},
        )
        for name, client in trained.items()
    }
    dealt = fit_prompts(deal(config), cohort.base, config)
    held = {client.name: client for client in with_secrets(dealt.clients, config.run.secrets)}
    audit = Audit(round_, list(trained))
    tokens = config.sampling.max_new_tokens
    for name, client in trained.items():
        data, seed = held[name], stream(config.run.seed, name, "audit")
        members, others = _problems(data, client.draws, config.run.seed, settings.problems)
        decoding = Decoding(settings.responses, tokens)
        asked = [*members, *others]
        prompts = cohort.base.encode_all([data.prompts.ask(problem) for problem in asked])
        seen = behaviours(cohort, client.adapters, asked, prompts, data.grade, decoding, seed)
        _add_scores(audit, seen, len(members))
        planted = [canary for canary in canaries if canary.client == name]
        often = Decoding(settings.canary_responses, tokens)
        results = expose(cohort, client.adapters, planted, data.prompts, often, seed)
        texts = [canary.prompt for canary in planted] + [text for p in members for text in (p.prompt, p.answer)]
        public = dealt.public or others
        returned = _returned(
            cohort, client.adapters, PrivateText(texts, words=WORDS, digits=DIGITS), public, data, often, seed
        )
        for view in client.adapters:
            for seen_by in (view, "public") if view == "site" else (view,):  # the public asks the global adapter
                audit.canaries.setdefault(seen_by, []).extend(results[view])
                hits, n = audit.returned.get(seen_by, (0, 0))
                audit.returned[seen_by] = hits + returned[view][0], n + returned[view][1]
    return audit


def _cohort(config: Config, trained: Mapping[str, Trained]) -> Cohort:
    """A cohort for adapters of their rank: rules that change the base weights end in adapters of a larger one."""
    largest = max((a for client in trained.values() for a in client.adapters.values()), key=lambda a: a.rank)
    lora = config.lora.model_copy(update={"rank": largest.rank, "alpha": largest.alpha})
    return new_cohort(config.model_copy(update={"lora": lora}))


def _problems(data: ClientData, draws: int, seed: int, most: int) -> tuple[list[Problem], list[Problem]]:
    """Training problems that were drawn, and held-out ones; at most so many of each, chosen by seed."""
    drawn = {question.id for question in data.draw(0, min(draws, len(data.train)), seed)}
    members = [problem for problem in data.answers.everything() if problem.id in drawn and problem.answer]
    others = [*data.validation, *data.test]
    if len(members) < 2 or len(others) < 2:
        raise DataError(
            f"{data.name}: {len(members)} training problems with an answer were drawn and {len(others)} are held out; "
            "an audit needs two of each. Raise data.test_size, or train for longer."
        )
    choice = random.Random(stream(seed, data.name, "audited"))
    return _some(members, most, choice), _some(others, most, choice)


def _some(problems: list[Problem], most: int, choice: random.Random) -> list[Problem]:
    return choice.sample(problems, most) if len(problems) > most else problems


def _add_scores(audit: Audit, seen: Mapping[str, Sequence[Behaviour]], members: int) -> None:
    for view, attacks in VIEWS.items():
        of = seen.get("site" if view == "public" else view)
        if of is None:
            continue
        for attack in attacks:
            scores = problem_scores(attack, of[:members], of[members:])
            before = audit.scores.get((view, attack))
            audit.scores[view, attack] = scores if before is None else before.joined(scores)


def _returned(
    cohort: Cohort,
    adapters: Mapping[str, Adapter],
    private: PrivateText,
    public: Sequence[Problem],
    data: ClientData,
    decoding: Decoding,
    seed: int,
) -> dict[str, tuple[int, int]]:
    """By view the number of responses to these problems that hold private text, and of all responses."""
    problems = public[: max(1, len(public) // 4)] if len(public) > 64 else public
    once = replace(decoding, responses=4)
    cohort.seat(adapters)
    prompts = cohort.base.encode_all([data.prompts.ask(problem) for problem in problems])
    drawn = cohort.sample(dict.fromkeys(adapters, prompts), once, dict.fromkeys(adapters, seed))
    known = [text for problem in problems for text in (problem.prompt, problem.answer)]
    result = {}
    for view in adapters:
        texts = [response.text for group in drawn[view] for response in group]
        result[view] = sum(match is not None for match in private.matches(texts, known)), len(texts)
    return result
