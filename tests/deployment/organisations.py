"""Organisations on disk, a federation that the local engine can run too, and messages on their way to the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from factories import make_request, make_terms, write_secret
from flwr.app import ArrayRecord, Context, Message, RecordDict
from small_runs import settings, write_problems

from fedrlvr.config import Config, parse_config
from fedrlvr.deployment.site.client_app import app
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.egress import message_mark
from fedrlvr.deployment.site.handler import Answering
from fedrlvr.deployment.site.socket import state_directory
from fedrlvr.deployment.terms import TERMS, Terms, terms_record
from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.privacy.card import digest_of
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.reporting.observer import Observer
from fedrlvr.simulation.run import Federation, new_cohort
from fedrlvr.tasks.deal import deal
from fedrlvr.tasks.own import write_own
from fedrlvr.wire.messages import UNCHANGED, adapter_to_arrays, content
from fedrlvr.wire.serialization import pack, unpack

NAMES = ("ann", "bob")

Organisations = Callable[..., Organisation]
"""An organisation by its name, with settings of its site.toml that differ. Its problems are not written."""
References = Callable[[str], Path]
"""The directory of what the local engine makes of a variant."""

VARIANTS: dict[str, dict[str, Mapping[str, Any]]] = {
    "moments": {"train": {"rounds": 2, "optimizer_state": "keep"}},
    "pubswap": {
        "train": {"rounds": 2, "local_steps": 2, "proximal_mu": 0.1, "optimizer_state": "keep"},
        "data": {"public_size": 4},
        "coordination": {"type": "pubswap", "exchanges": 2, "public_problems": 2},
    },
    "flora": {"train": {"rounds": 2}, "aggregation": {"type": "flora"}, "lora": {"rank": {"ann": 2, "bob": 4}}},
    "step": {
        "train": {"rounds": 3},
        "aggregation": {
            "server_learning_rate": "auto",
            "server_agreement": "clients",
            "precision": "int8",
            "precision_down": "int8",
        },
    },
    "finish": {
        "train": {"rounds": 2},
        "aggregation": {"type": "flora"},
        "lora": {"rank": {"ann": 2, "bob": 4}},
        "personal": {"type": "finish", "steps": 2},
    },
    "fedsa": {"train": {"rounds": 2}, "personal": {"type": "fedsa"}},
    "fedalt": {"train": {"rounds": 3}, "personal": {"type": "fedalt"}},
    "asking": {
        "train": {"rounds": 2},
        "supervision": {"type": "random", "budget": 0.5, "rest": "pseudo"},
    },
    "methods": {
        "train": {"rounds": 2, "local_steps": 2},
        "data": {"public_size": 4},
        "coordination": {"type": "pubswap", "exchanges": 2, "public_problems": 2, "swap": "none"},
        "supervision": {"type": "care", "budget": 0.5, "vote_free_share": 0.25},
        "aggregation": {"weights": "fgrpo", "fgrpo_gain_from": "public"},
    },
}
"""Federations whose clients remember something: moments; a round under way; a change of the base weights; labels;
a personal adapter, or a part of one; several of these. In one the server remembers their changes, and
adapters are rounded both ways."""


def federation(model: Path, problems: Path, directory: Path, variant: str = "moments", **more: Any) -> Config:
    """The configuration of a small federation of ann and bob."""
    write_problems(problems, NAMES)
    changes: dict[str, Any] = {key: dict(value) for key, value in VARIANTS[variant].items()}
    for key, value in {"federation": {"clients": list(NAMES)}, **more}.items():
        changes[key] = {**changes.get(key, {}), **value}
    return parse_config(settings(model, problems, directory, **changes))


def give_problems(config: Config, sites: Path) -> None:
    """Write what the local engine would deal to each client to <sites>/<client>/problems."""
    for site in deal(config).clients:
        root = sites / site.name / "problems"
        write_own(root / "train.jsonl", site.answers.everything())
        write_own(root / "test.jsonl", site.test)


def give_secrets(directory: Path, names: Sequence[str] = NAMES) -> Path:
    """Write what the organisations of these names mix into their streams, for a simulation; its directory."""
    for name in names:
        write_secret(directory / f"{name}.secret", name)
    return directory


def terms_of(config: Config, base: Base, client: str, run: str = "run", **changes: Any) -> Terms:
    """The terms in a server's messages to a client, for a run of this configuration."""
    fields: dict[str, Any] = {
        "clients": 2,
        "rounds": config.train.rounds,
        "model": "tiny",
        "model_id": base.model_id,
        "weights_id": base.weights_id,
        "tokenizer_id": base.tokenizer_id,
        "prompt": config.prompt,
        "rank": config.lora.rank_of(client),
        "largest": config.lora.largest,
        "alpha": config.lora.alpha,
    }
    return make_terms(client, run=run, **fields | changes)


class Deployed:
    """A federation whose clients are organisations: what its server asks goes through Flower's app to their workers.

    before: called with each message's client and type before it is asked, to let something happen then.
    """

    def __init__(
        self,
        config: Config,
        orgs: Mapping[str, Organisation],
        cohort: Cohort | None = None,
        before: Callable[[str, Message], None] = lambda client, message: None,
        **terms: Any,
    ) -> None:
        assert config.run.directory is not None
        self.orgs, self.before = orgs, before
        self.federation = Federation(config, config.run.directory, cohort or new_cohort(config), Observer())
        self.terms = {name: terms_of(config, self.federation.cohort.base, name, **terms) for name in orgs}

    def go(self, *, resume: bool = False) -> None:
        """All rounds that are not done."""
        self.federation.go(resume=resume, handler=self.handle)

    def handle(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Replies of the organisations, one after another."""
        replies = []
        for message in messages:
            client = self.federation.names[message.metadata.dst_node_id]
            self.before(client, message)
            replies.append(through_flower(message, self.terms[client], self.orgs[client]))
        return replies


def through_flower(message: Message, terms: Terms, org: Organisation) -> Message:
    """An organisation's reply to a message of a server, by its Flower app."""
    full = RecordDict({**message.content, TERMS: terms_record(terms)})
    sent = Message(full, metadata=message.metadata)  # type: ignore[call-overload]
    return app(sent, Context(1, message.metadata.dst_node_id, {"site": str(org.path)}, RecordDict(), {}))


def allow(org: Organisation, data: bytes, message_id: str) -> None:
    """Write the line by which a worker lets these bytes leave as the reply to a message."""
    log = DecisionLog(state_directory(org))
    log.append("allow", kind="adapter", digest=digest_of(data), message=message_mark(message_id))


def train_content(config: Config, cohort: Cohort, terms: Terms | None, round_: int = 1, **request: Any) -> RecordDict:
    """A `train` message's content: all local steps of a round, from a fresh adapter."""
    asked = make_request(config, round=round_, **request)
    made: RecordDict = content(asked, arrays=adapter_to_arrays(cohort.fresh_adapter(1)))
    if terms is not None:
        made[TERMS] = terms_record(terms)
    return made


def header(message_type: str = "train", message_id: str = "m1", **changes: Any) -> dict[str, Any]:
    """The header that a client app sends to its worker with a message."""
    fields = {"type": "message", "message_type": message_type, "run_id": 1, "node_id": 7, "group_id": "1"}
    return {**fields, "message_id": message_id, **changes}


def arrays(content: RecordDict, name: str = "arrays") -> list[bytes]:
    """The data of a record's arrays."""
    record = content[name]
    assert isinstance(record, ArrayRecord)
    return [array.data for array in record.values()]


def answering(org: Organisation) -> Answering:
    lines: list[str] = []
    site = Answering(org, lines.append)
    site.lines = lines  # type: ignore[attr-defined]
    return site


def log_of(site: Answering) -> list[str]:
    return site.lines  # type: ignore[attr-defined]


def refusal(site: Answering, content: RecordDict, **head: Any) -> str:
    reply, data = site.reply(header(**head), pack(content))
    assert (reply["ok"], reply["kind"], data) == (False, "refused", b"")
    assert log_of(site)[-1].endswith(f"refused: {reply['reason']}")
    return str(reply["reason"])


def trained(site: Answering, content: RecordDict, message_id: str = "m1") -> list[bytes]:
    """The data of the adapter that a message's answer stands for."""
    reply, data = site.reply(header(message_id=message_id), pack(content))
    assert reply == {"ok": True}, log_of(site)[-1]
    answer = unpack(data)
    return arrays(content if UNCHANGED in answer else answer)


def terms(config: Config, cohort: Cohort, **changes: Any) -> Any:
    return terms_of(config, cohort.base, **{"client": "ann", **changes})
