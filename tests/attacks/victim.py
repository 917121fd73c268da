"""A site with private problems, and a server that sends it legal messages and reads nothing but the replies.

Messages take the site's own path: bytes through `Answering.reply`, which checks limits, trains and packs the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from factories import FLOORS_OFF, make_request, make_site, make_terms, write_secret
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from transformers import AutoConfig, AutoModelForCausalLM

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, EvaluateConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from fedrlvr.deployment.site.handler import SAMPLING_SECRET, Answering
from fedrlvr.deployment.terms import TERMS, terms_record
from fedrlvr.policy.base import Base, load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.wire.compression import unpack as unpack_change
from fedrlvr.wire.messages import (
    ARRAYS,
    CONFIG,
    DELTA,
    METRICS,
    UNCHANGED,
    EvaluateRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    content,
    record_in,
)
from fedrlvr.wire.model_delta import CHANGE, ModelDelta
from fedrlvr.wire.serialization import pack, unpack
from scripts.reasoner.tokenizer import build

SITE = "ann"
OPEN = {**FLOORS_OFF, "scale_free": False}
"""[limits] of a site without any floor."""
ALPHA = 16.0

Rows = Sequence[Mapping[str, Any]]
"""Problems as in a user's own JSONL file."""


class Refused(Exception):
    """The site's answer to a message that it does not compute."""


@dataclass(frozen=True)
class Reply:
    """A client's reply. adapter: the trained one, if sent. numbers: of the reply's metrics. sources: names."""

    adapter: Adapter | None
    numbers: Mapping[str, Any]
    sources: Sequence[str]


class Victim:
    """A site `ann` with one task for each set of problems, and the server that asks it.

    tasks: by name training rows; `tests`: by name held-out rows, else two rows that nobody asks for.
    limits: of the site's [limits] that differ from the defaults. model: a directory; None: the embedded reasoner.
    """

    def __init__(
        self,
        directory: Path,
        tasks: Mapping[str, Rows],
        *,
        tests: Mapping[str, Rows] | None = None,
        limits: Mapping[str, Any] | None = None,
        model: Path | None = None,
    ) -> None:
        for name, rows in tasks.items():
            folder = directory / SITE / name
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "train.jsonl", rows)
            _write(folder / "test.jsonl", (tests or {}).get(name) or [{"prompt": "7 mod 4?", "answer": "3"}])
        place = "embedded" if model is None else str(model)
        org = make_site(
            directory / SITE,
            tasks={name: {"name": "jsonl", "path": name, "prompt": {"instruction": ""}} for name in tasks},
            models={"embedded": place},
            machine={"device": "cpu"},
            engine={"threads": 1},
            limits=dict(limits or {}),
        )
        write_secret(org.state / SAMPLING_SECRET, SITE)  # one that no server knows, and the same in every test run
        self.log: list[str] = []
        self.site = Answering(org, self.log.append)
        self.home: Base = load_base(ModelConfig(name=place, device="cpu"))
        """The server's copy of the base model."""
        self.sent = 0
        self._cohort: Cohort | None = None

    def cohort(self, rank: int, alpha: float = ALPHA) -> Cohort:
        """A cohort on the server's copy of the model; a later call takes its layers off the earlier cohort."""
        if self._cohort is not None:
            self._cohort.stack.remove()
        self._cohort = Cohort(self.home, LoraConfig(rank=rank, alpha=alpha), EngineConfig())
        return self._cohort

    def train(
        self,
        task: str,
        adapter: Adapter,
        *,
        run: str | None = None,
        change: Adapter | None = None,
        train: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        terms: Mapping[str, Any] | None = None,
        **request: Any,
    ) -> Reply:
        """The reply to a `train` message of one round.

        change: of the base weights, of scale 1, sent along. train, sampling, terms: settings of these; `request`: of
        the request itself.

        Raises:
            Refused: with the site's reason.
        """
        settings = TrainConfig.model_validate({"rounds": 1, "local_steps": 1, "problems_per_step": 1, **(train or {})})
        asked = make_request(
            sampling=SamplingConfig.model_validate({"group_size": 2, "max_new_tokens": 1, **(sampling or {})}),
            train=settings,
            **{"steps": settings.local_steps, **request},
        )
        records: dict[str, Any] = {ARRAYS: adapter_to_arrays(adapter)}
        if change is not None:
            records[CHANGE] = adapter_to_arrays(change)
            records[DELTA] = ModelDelta(version=0, change_rank=change.rank).record()
        reply = self._ask("train", task, content(asked, **records), adapter, run, terms or {})
        arrays = records[ARRAYS] if UNCHANGED in reply else record_in(reply, ARRAYS, ArrayRecord)
        assert arrays is not None
        if asked.precision == "float32":
            trained = arrays_to_adapter(arrays, adapter, place=SITE, halves=asked.trains)
        else:
            trained = unpack_change(arrays, adapter, precision=asked.precision, halves=asked.trains, place=SITE)
        return Reply(trained, dict(record_in(reply, METRICS, MetricRecord) or {}), ())

    def evaluate(
        self,
        task: str,
        adapter: Adapter,
        *,
        run: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        evaluate: Mapping[str, Any] | None = None,
        terms: Mapping[str, Any] | None = None,
        **request: Any,
    ) -> Reply:
        """The reply to an `evaluate` message.

        Raises:
            Refused: with the site's reason.
        """
        asked = EvaluateRequest(
            **{"round": 0, "seed": 0, **request},
            sampling=SamplingConfig.model_validate({"group_size": 2, "max_new_tokens": 1, **(sampling or {})}),
            evaluate=EvaluateConfig.model_validate(evaluate or {}),
        )
        records = {ARRAYS: adapter_to_arrays(adapter)}
        reply = self._ask("evaluate", task, content(asked, **records), adapter, run, terms or {})
        names = (record_in(reply, CONFIG, ConfigRecord) or ConfigRecord()).get("sources", [])
        return Reply(None, dict(record_in(reply, METRICS, MetricRecord) or {}), list(names))  # type: ignore[call-overload]

    def _ask(
        self, kind: str, task: str, message: RecordDict, adapter: Adapter, run: str | None, terms: Mapping[str, Any]
    ) -> RecordDict:
        self.sent += 1
        of_run = {
            "run": run or f"run-{self.sent}",
            "rounds": 1,
            "task": task,
            "model": "embedded",
            "model_id": self.home.model_id,
            "weights_id": self.home.weights_id,
            "tokenizer_id": self.home.tokenizer_id,
            "rank": adapter.rank,
            "largest": adapter.rank,
            "alpha": adapter.alpha,
            **terms,
        }
        message[TERMS] = terms_record(make_terms(SITE, **of_run))
        header = {
            "type": "message",
            "message_type": kind,
            "run_id": 1,
            "node_id": 7,
            "group_id": "1",
            "message_id": f"m{self.sent}",
        }
        threads = torch.get_num_threads()
        try:
            reply, data = self.site.reply(header, pack(message))
        finally:
            torch.set_num_threads(threads)
        if not reply["ok"]:
            raise Refused(reply["reason"])
        return unpack(data)


def wide_model(directory: Path, width: int, layers: int = 2) -> Path:
    """Save a random Llama with the character tokenizer.

    The reasoner is narrow; models in use are wider than the prompts of a few problems have tokens, as this one is.
    """
    tokenizer = build()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": width // 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.06,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _write(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), "utf-8")
