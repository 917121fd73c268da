"""Nothing private travels: no text and no token id of any prompt, answer or response, in any message, log or file."""

from __future__ import annotations

import json
import logging
import random
import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from leaks import PART, Secrets, contents, leaks, searchable
from small_runs import CLIENTS, Configs

from fedrlvr.client.metrics import StepMetrics
from fedrlvr.config import parse_config
from fedrlvr.errors import GradingError
from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.model_check import QUESTION
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid

# What may be read by whoever has the run directory; clients/ is each client's own.
SHOWN = ("about.json", "metrics.jsonl", "report.html", "holdings.json", "config.json")


@dataclass
class Watched:
    """A run that was watched: its messages, and all that was private in it."""

    directory: Path
    problems: Secrets = field(default_factory=Secrets)
    responses: Secrets = field(default_factory=Secrets)
    messages: list[Message] = field(default_factory=list)
    logged: str = ""


def write_secrets(directory: Path) -> Secrets:
    """Problems whose prompts and answers are random letters, so that no part of them occurs by chance."""
    rng = random.Random(0)
    secrets = Secrets()
    for split, count in (("train", 4), ("test", 3)):
        rows = []
        for client in CLIENTS:
            for i in range(count):
                prompt, answer = ("".join(rng.choices(string.ascii_letters, k=40)) for _ in range(2))
                rows.append({"prompt": prompt, "answer": answer, "id": f"{client}-{split}-{i}", "source": client})
                secrets.texts += [prompt, answer]
        directory.mkdir(exist_ok=True)
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return secrets


def watch(
    configured: Configs, tmp: Path, arm: str, monkeypatch: pytest.MonkeyPatch, reward: str, **changes: dict[str, Any]
) -> Watched:
    watched = Watched(tmp / "run", write_secrets(tmp / "data"))
    seen_ids: set[tuple[int, ...]] = set()

    class Recording(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            messages = list(messages)
            watched.messages += messages
            replies = list(super().send_and_receive(messages, timeout=timeout))
            watched.messages += replies
            return replies

    real_sample, real_encode = Cohort.sample, Base.encode

    def sample(self: Cohort, *args: Any) -> Any:
        drawn = real_sample(self, *args)
        for responses in (r for groups in drawn.values() for r in groups):
            for response in responses:
                watched.responses.texts.append(response.text)
                watched.responses.ids.append(list(response.token_ids))
        return drawn

    def encode(self: Base, *args: Any) -> list[int]:
        ids = real_encode(self, *args)
        if tuple(ids) not in seen_ids and args != (QUESTION,):  # the start-up check's own prompt is no secret
            seen_ids.add(tuple(ids))
            watched.problems.ids.append(ids)
        return ids

    monkeypatch.setattr(run_module, "LocalGrid", Recording)
    monkeypatch.setattr(Cohort, "sample", sample)
    monkeypatch.setattr(Base, "encode", encode)
    tree = configured(
        watched.directory,
        data={"path": str(tmp / "data"), "rewards": reward, "options": {"kind": "exact"}},
        federation={"arm": arm},
        sampling={"max_new_tokens": 16},
        evaluate={"every": 1},
        **changes,
    )
    handler = logging.StreamHandler(log := _Text())
    for name in ("", "flwr"):  # Flower's loggers do not pass on what they hear
        logging.getLogger(name).addHandler(handler)
    names = ["", *(name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("fedrlvr", "flwr"))]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    for name in ("fedrlvr.server", "flwr"):
        logging.getLogger(name).debug("%s is heard", name)
    try:
        run_module.run(parse_config(tree))
    finally:
        for name in ("", "flwr"):
            logging.getLogger(name).removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        watched.logged = "".join(log.written)
    return watched


class _Text:
    """A stream that keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, text: str) -> None:
        self.written.append(text)

    def flush(self) -> None:
        """Nothing is held back."""


@pytest.mark.parametrize("arm", ["federated", "local"])
def test_no_message_log_or_file_holds_a_prompt_an_answer_or_a_response(
    arm: str, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(configured, tmp_path, arm, monkeypatch, "small_runs:parity")
    kinds = {(m.metadata.message_type, m.metadata.dst_node_id == 0) for m in watched.messages}
    assert kinds == {("train", False), ("train", True), ("evaluate", False), ("evaluate", True)}
    assert len(watched.messages) == 2 * 3 * (2 + 3)
    # 21 prompts and as many answers; responses of two trainings and three evaluations, few of which end early.
    assert len(watched.problems.texts) == 42
    assert len(watched.problems.ids) == 21
    assert sum(len(ids) >= PART for ids in watched.responses.ids) > 60

    assert "fedrlvr.server is heard" in watched.logged
    assert "flwr is heard" in watched.logged
    travelled = searchable(contents(watched.messages))
    shown = b"".join((watched.directory / name).read_bytes() for name in SHOWN) + watched.logged.encode()
    server = b"".join(path.read_bytes() for path in (watched.directory / "checkpoints").rglob("*") if path.is_file())
    for secrets in (watched.problems, watched.responses):
        assert leaks(secrets, travelled) == []
        assert leaks(secrets, shown) == []
        assert leaks(secrets, server) == []
    # A few responses are on each client's own disk, and a simulation's report, which is not drawn here, shows some.
    for client in CLIENTS:
        written = (watched.directory / "clients" / client / "responses.jsonl").read_bytes()
        assert leaks(watched.problems, written)
        assert leaks(watched.responses, written)


def test_labels_that_are_paid_for_stay_on_the_clients_disk(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    care = {"type": "care", "budget": 0.5, "vote_free_share": 0.01, "share_probes": True, "audit": True}
    watched = watch(configured, tmp_path, "federated", monkeypatch, "small_runs:parity", supervision=care)
    travelled = searchable(contents(watched.messages))
    assert b"labels_asked" in travelled
    assert b"probes" in travelled
    shown = b"".join((watched.directory / name).read_bytes() for name in SHOWN) + watched.logged.encode()
    server = b"".join(path.read_bytes() for path in (watched.directory / "checkpoints").rglob("*") if path.is_file())
    for secrets in (watched.problems, watched.responses):
        assert leaks(secrets, travelled) == []
        assert leaks(secrets, shown) == []
        assert leaks(secrets, server) == []
    # What was asked about is in the ledger, of each client its own.
    for client in CLIENTS:
        result = leaks(watched.problems, (watched.directory / "clients" / client / "ledger.sqlite").read_bytes())
        assert result


def test_an_error_of_a_reward_tells_neither_answer_nor_response(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GradingError) as caught:
        watch(configured, tmp_path, "federated", monkeypatch, "small_runs:tells_all")
    secrets = write_secrets(tmp_path / "data")
    assert "raised ValueError on problem" in str(caught.value)
    assert leaks(secrets, str(caught.value).encode()) == []
    assert leaks(secrets, str(caught.value.__cause__).encode()) == []  # its own text stays in its process


SECRET_TEXT = "kQzXvWjYpRtNbLmHgF"
SECRET_IDS = [7, 81, 3, 92, 55, 14, 66, 20, 31, 48, 77, 5, 90, 12]


def arrays(values: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"layer": Array(values)})})


def config(**values: Any) -> RecordDict:
    return RecordDict({"config": ConfigRecord(values)})


@pytest.mark.parametrize(
    "planted",
    [
        config(note=f"the prompt was {SECRET_TEXT}!"),
        config(note=json.dumps({"deep": [SECRET_TEXT]})),
        config(note=SECRET_TEXT[3:16]),
        config(note=["x", f"..{SECRET_TEXT}"]),
        config(note=SECRET_TEXT.encode()),
        config(note=[b"x", SECRET_TEXT.encode()]),
        config(**{SECRET_TEXT: 1}),
        config(ids=[1, 2, *SECRET_IDS, 3]),
        config(ids=json.dumps(SECRET_IDS, separators=(",", ":"))),
        config(ids=np.array(SECRET_IDS, np.int32).tobytes()),
        config(ids=bytes(SECRET_IDS)),
        RecordDict({"metrics": MetricRecord({"ids": [0, *SECRET_IDS]})}),
        RecordDict({SECRET_TEXT: MetricRecord({"n": 1})}),
        arrays(np.array([[0, *SECRET_IDS]], np.int64)),
        arrays(np.array([0, *SECRET_IDS], np.int32)),
        arrays(np.array([0, *SECRET_IDS], np.float32)),
        arrays(np.array(SECRET_IDS, np.float64)),
        arrays(np.frombuffer(SECRET_TEXT.encode(), np.uint8).copy()),
    ],
)
def test_the_detector_finds_what_is_planted(planted: RecordDict) -> None:
    secrets = Secrets([SECRET_TEXT], [SECRET_IDS])
    clean = [config(request="{}", n=3), arrays(np.random.default_rng(0).normal(size=5000).astype(np.float32))]
    assert leaks(secrets, searchable(clean)) == []
    assert leaks(secrets, searchable([*clean, planted, *clean]))


def test_a_run_that_leaks_is_caught(configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole chain sees a client that slips its responses' ids into its metrics."""
    taken: list[int] = []
    sampled, summary = StepMetrics.sampled, StepMetrics.summary

    def take(self: StepMetrics, groups: Any) -> None:
        taken.extend(groups[0].responses[0].token_ids)
        sampled(self, groups)

    monkeypatch.setattr(StepMetrics, "sampled", take)
    monkeypatch.setattr(StepMetrics, "summary", lambda self: {**summary(self), "extra": list(taken)})
    watched = watch(configured, tmp_path, "federated", monkeypatch, "small_runs:parity")
    result = leaks(watched.responses, searchable(contents(watched.messages)))
    assert any("in JSON" in what for what in result)
    assert leaks(watched.problems, searchable(contents(watched.messages))) == []
