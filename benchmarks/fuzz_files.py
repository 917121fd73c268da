"""Readers of files, problems, completions, labels and requests to the desk, for `scripts/bench fuzz`: each with valid
inputs that are altered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, RecordDict

from benchmarks.fuzz_inputs import json_of, scrambled, text_of, tree_of
from benchmarks.fuzz_wire import LIKE, Make, Reader, altered_tree
from fedrlvr.cli.superlink import SETTINGS, load_superlink
from fedrlvr.config import Config, load_config, load_resolved, parse_config
from fedrlvr.deployment.site.config import load_site
from fedrlvr.deployment.site.round_states import Past, RoundStates
from fedrlvr.labels.desk.app import make_desk
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.labels.spreadsheet import COLUMNS, read_csv
from fedrlvr.policy.peft_format import load_peft, save_peft
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.supervision.types import Query
from fedrlvr.tasks import extract, grade, load
from fedrlvr.tasks.extraction import behind_answer
from fedrlvr.tasks.grading import canonical
from fedrlvr.tasks.problem import KINDS, Question


def files(root: Path) -> dict[str, Reader]:
    """The files of a run and of an organisation."""
    run = root / "run"
    checkpoints = Checkpoints(run, 3)
    checkpoints.save(Checkpoint(1, LIKE, {"x": [1, None]}, probes=torch.ones(4), rule={"m": torch.ones(2)}))
    place = run / "checkpoints" / "round-0001"
    state, tensors = (place / "state.json").read_bytes(), (place / "adapter.safetensors").read_bytes()
    peft = root / "peft"
    peft.mkdir()
    save_peft(LIKE, peft, base_name="m")
    weights = (peft / "adapter_model.safetensors").read_bytes()
    lines = [{"round": n, "clients": {"ann": {"reward": 0.5}}, "seconds": {}} for n in range(3)]
    site = 'name = "ann"\nsuperlink = "h:9092"\n[tasks.main]\nname = "embedded"\n[models]\nm = "embedded"\n[limits]\n'
    site += "rounds = 5\nleast_problems = 3\n"
    experiment = (
        '[run]\nname = "x"\n[federation]\nclients = ["ann", "bob"]\n[train]\nlearning_rate = 1e-3\nrounds = 2\n'
    )
    experiment += '[supervision]\ntype = "care"\n[lora]\nrank = {ann = 2, bob = 4}\n[aggregation]\ntype = "hetlora"\n'
    memory = Context(1, 1, {}, RecordDict({"x": ConfigRecord({"cursor": 3})}), {})
    RoundStates(root / "memories", "ann", print).save(1, Past(RecordDict(), 0), memory, "m", b"reply")
    note = next((root / "memories").rglob("memory.json"))

    def written(path: Path, read: Callable[[], Any]) -> Callable[[Any], Any]:
        def take(data: bytes | str) -> Any:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
            return read()

        return take

    def checkpoint(data: bytes) -> Any:
        """The tensors, with the hash of what is there: who writes the file can write its hash too."""
        (place / "adapter.safetensors").write_bytes(data)
        import hashlib

        note = json.loads(state) | {"sha256": {"adapter.safetensors": hashlib.sha256(data).hexdigest()}}
        (place / "state.json").write_text(json.dumps(note))
        return checkpoints.load()

    def restored(data: bytes | str) -> Any:
        (place / "adapter.safetensors").write_bytes(tensors)
        return written(place / "state.json", checkpoints.load)(data)

    def remembered() -> None:
        states = RoundStates(root / "memories", "ann", lambda _: None)
        states.go_on(1)
        states.reply_to("m")

    config = parse_config(
        {
            "federation": {"clients": ["ann", "bob"]},
            "aggregation": {"weights": "fgrpo"},
            "lora": {"rank": 2, "alpha": 4.0},
        }
    )
    strategy_state = FederatedRLVR(config, {1: "ann", 2: "bob"}, LIKE, Observer()).state()
    strategy_state |= {"declared": {"train": {"ann": 3}, "test": {}}, "usual_change": 0.1}

    def goes_on(state: Any) -> None:
        strategy = FederatedRLVR(config, {1: "ann", 2: "bob"}, LIKE, Observer())
        strategy.restore(Checkpoint(1, LIKE, state))

    def toml(text: str) -> Make:
        return lambda rng: text if rng is None else text_of(text, rng)

    def metrics(rng: random.Random | None) -> str:
        return "".join((json.dumps(line) if rng is None else json_of(line, rng)) + "\n" for line in lines)

    def tensors_of(valid: bytes) -> Make:
        size = int.from_bytes(valid[:8], "little")

        def make(rng: random.Random | None) -> bytes:
            if rng is None or rng.random() < 0.4:
                return valid if rng is None else scrambled(valid, rng)
            text = json_of(json.loads(valid[8 : 8 + size]), rng).encode("utf-8", "surrogatepass")
            return len(text).to_bytes(8, "little") + text + valid[8 + size :]

        return make

    def adapter_config(data: str) -> Any:
        (peft / "adapter_model.safetensors").write_bytes(weights)
        return written(peft / "adapter_config.json", lambda: load_peft(peft))(data)

    def adapter_weights(data: bytes) -> Any:
        save_peft(LIKE, peft, base_name="m")
        return written(peft / "adapter_model.safetensors", lambda: load_peft(peft))(data)

    resolved = Config().model_dump(mode="json")
    config_of = json.loads((peft / "adapter_config.json").read_text("utf-8"))
    return {
        "state.json of a checkpoint": Reader(altered_tree(json.loads(state)), restored),
        "tensors of a checkpoint": Reader(tensors_of(tensors), checkpoint),
        "note of a site's memory": Reader(altered_tree(json.loads(note.read_text("utf-8"))), written(note, remembered)),
        "state of a strategy": Reader(
            lambda rng: strategy_state if rng is None else tree_of(strategy_state, rng), goes_on
        ),
        "metrics.jsonl": Reader(metrics, written(root / "metrics.jsonl", lambda: read_metrics(root))),
        "config.json of a run": Reader(
            altered_tree(resolved), written(root / "config.json", lambda: load_resolved(root / "config.json")), (), 2
        ),
        "experiment TOML": Reader(
            toml(experiment), written(root / "e.toml", lambda: load_config(root / "e.toml")), (), 2
        ),
        "a setting of the command line": Reader(
            toml("train.learning_rate=1e-3"), lambda override: load_config(None, [override])
        ),
        "superlink.toml": Reader(
            toml('address = "h:9092"\nhost = "127.0.0.1"\nport = 9092\ninsecure = true\n'),
            written(root / SETTINGS, lambda: load_superlink(root)),
        ),
        "site.toml": Reader(toml(site), written(root / "site.toml", lambda: load_site(root / "site.toml"))),
        "adapter_config.json": Reader(altered_tree(config_of), adapter_config),
        "adapter_model.safetensors": Reader(tensors_of(weights), adapter_weights, (), 2),
    }


ROWS = [
    {"prompt": "What is 1 + 1?", "answer": "2", "id": "a", "source": "sums", "kind": "math"},
    {"question": "Which? A. x B. y", "answer": "A", "kind": "choice"},
    {"prompt": "Is it?", "answer": "yes", "kind": "yes_no_maybe"},
    {"prompt": "Name it.", "answer": "iron", "kind": "exact", "info": {"a": [1]}},
    {"prompt": [{"role": "user", "content": "2 + 2?"}], "reward_model": {"ground_truth": "4"}},
]
COMPLETIONS = (
    r"<think>2 + 2</think> So \boxed{\frac{1}{2}} or $\boxed{0.5}$.",
    r"The answer is \boxed{x^2 + 3x - \sqrt{2}}",
    r"\boxed{(1, 2), [3, 4)}, \boxed{\{1,2\}}",
    "<answer>1,234.50 dollars</answer>",
    "#### 5e-05",
    r"B. Heparin \boxed{B}",
    "Answer: yes",
    r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}",
    r"\boxed{12\% \text{ of } 10^{3}}",
)
GOLDS = {"math": ("1/2", "x^2 + 3x - sqrt(2)", "1234.5", "(1,2)"), "choice": ("B",), "yes_no_maybe": ("yes",)}


def labels(root: Path) -> dict[str, Reader]:
    """Problems, answers, completions, ledgers and the desk."""
    problems = root / "own.jsonl"

    def rows(rng: random.Random | None) -> bytes:
        lines = [json.dumps(row) for row in ROWS] if rng is None else [json_of(row, rng) for row in ROWS[:3]]
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        return data if rng is None or rng.random() < 0.8 else scrambled(data, rng)

    def problems_in(data: bytes) -> Any:
        problems.write_bytes(data)
        return load("jsonl", problems, "train", unlabelled=True)

    def document(data: str) -> Any:
        (root / "own.json").write_bytes(data.encode("utf-8", "surrogatepass"))
        return load("jsonl", root / "own.json", "train", unlabelled=True)

    def asked_of(path: Path) -> LabelLedger:
        made = LabelLedger(path, durable=False)
        for rank in range(1, 4):
            question = Question(f"What is {rank}?", f"p{rank}", "sums", "math")
            made.ask(Query(question, 1, rank, 0.5, 0.4, "42", 5, 8, ("42.", "41.")), at=1.0)
        made.answer("p3", "correct", "7", expert="f", at=1.0)
        return made

    ledger = asked_of(root / "ledger.sqlite")
    header = ",".join(COLUMNS)
    csv = f'{header}\r\np1,"What is 1?",math,42,5,8,a,b,0.5,2026-01-01,43,correct,\r\n'
    stored = root / "stored.sqlite"
    asked_of(stored).close()
    sqlite = stored.read_bytes()

    def ledger_bytes(rng: random.Random | None) -> bytes:
        if rng is None or rng.random() < 0.4:
            return sqlite if rng is None else scrambled(sqlite, rng)
        path = root / "altered.sqlite"
        path.write_bytes(sqlite)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("PRAGMA ignore_check_constraints = ON")
            database.execute("PRAGMA foreign_keys = OFF")
            for _ in range(rng.randint(1, 3)):
                table = rng.choice(["question", "opinion", "shown", "used"])
                column = rng.choice([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
                value = rng.choice(
                    [None, 0, -1, 2**63 - 1, 1.5, 1e308, "[1]", "{}", "x" * 10_000, b"\xff", "\x00", "[" * 9999]
                )
                with contextlib.suppress(sqlite3.Error):
                    database.execute(f"UPDATE {table} SET {column} = ?", (value,))
            database.execute(f"PRAGMA user_version = {rng.choice([0, 1, 2, 2, 2, 99])}") if rng.random() < 0.1 else None
        return path.read_bytes()

    def opened(data: bytes) -> None:
        for path in root.glob("fuzzed.sqlite*"):
            path.unlink()
        path = root / "fuzzed.sqlite"
        path.write_bytes(data)
        opened_ledger = LabelLedger(path, durable=False)
        try:
            opened_ledger.entries()
            opened_ledger.counts()
            opened_ledger.next_open("e", at=2.0, lease=60.0)
        finally:
            opened_ledger.close()

    def completion(rng: random.Random | None) -> tuple[str, str, str]:
        kind = "math" if rng is None else rng.choice(KINDS)
        gold = GOLDS.get(kind, ("iron",))[0] if rng is None else rng.choice(GOLDS.get(kind, ("iron",)))
        text = COMPLETIONS[0] if rng is None else rng.choice(COMPLETIONS)
        for _ in range(0 if rng is None else rng.randint(1, 3)):
            assert rng is not None
            text = text_of(text, rng)
        if rng is not None and rng.random() < 0.3:
            text = f"\\boxed{{{text}}}"
        return text, gold, kind

    def graded(triple: tuple[str, str, Any]) -> None:
        text, gold, kind = triple
        grade(text, gold, kind)
        grade(text, gold, kind, in_thought=True, arithmetic=True)
        canonical(extract(text, kind) or "", kind)
        behind_answer(text, kind)

    desk = make_desk(ledger, "token", "ann", clock=lambda: 2.0)
    loop = asyncio.new_event_loop()
    bodies = [
        ("POST", "/api/answer", {"problem": "p1", "verdict": "correct", "answer": "3", "expert": "e"}),
        ("POST", "/api/second", {"problem": "p1"}),
        ("GET", "/api/next?expert=e", None),
        ("GET", "/api/last?expert=e&back=0", None),
    ]

    def http(rng: random.Random | None) -> tuple[str, str, bytes, list[tuple[bytes, bytes]]]:
        method, path, body = bodies[2] if rng is None else rng.choice(bodies)
        headers = [(b"host", b"127.0.0.1:8765"), (b"authorization", b"Bearer token")]
        text = b"" if body is None else json.dumps(body).encode()
        if rng is not None:
            if body is not None:
                text = json_of(body, rng).encode("utf-8", "surrogatepass")
            if rng.random() < 0.3:
                path = text_of(path, rng)
            if rng.random() < 0.2:
                at = rng.randrange(len(headers))
                headers[at] = headers[at][0], scrambled(headers[at][1], rng)
        return method, path, text, headers

    def asked(request: tuple[str, str, bytes, list[tuple[bytes, bytes]]]) -> None:
        method, path, body, headers = request
        place, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": place,
            "raw_path": place.encode("utf-8", "replace"),
            "query_string": query.encode("utf-8", "replace"),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8765),
        }
        statuses: list[int] = []

        async def read() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def write(event: Any) -> None:
            if event["type"] == "http.response.start":
                statuses.append(event["status"])

        loop.run_until_complete(desk(scope, read, write))
        if not statuses or statuses[0] >= 500:
            raise RuntimeError(f"the desk answered {statuses}")

    return {
        "problems in JSON lines": Reader(rows, problems_in),
        "problems in one JSON document": Reader(altered_tree(ROWS[:3]), document),
        "completions": Reader(completion, graded),
        "CSV of answers": Reader(
            lambda rng: csv.encode() if rng is None else text_of(csv, rng).encode("utf-8", "surrogatepass"),
            lambda data: read_csv(data, ledger, "e", 2.0),
        ),
        "label ledger": Reader(ledger_bytes, opened, (), 2),
        "requests to the desk": Reader(http, asked, (), 2),
    }
