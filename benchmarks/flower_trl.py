"""The baseline: what one would build today from Flower's and TRL's documentation, one client after another.

Server: Flower's `FedAvg` in a `ServerApp`, started by its own `start`. Client: a `ClientApp` whose `train` function
puts the received LoRA weights into a PEFT model, lets TRL's `GRPOTrainer` take the round's step and sends the weights
back. Flower's simulation needs Ray, which adds start-up and processes to every round; here a grid of this file calls
the client app in this process instead, so nothing is charged to Flower but its own work.

Two baselines. As documented (`documented=True`): a trainer for each message, as the examples have it, and TRL's own
defaults where the case does not say otherwise (activation checkpointing, micro-batches of 8 responses). Tuned: one
trainer for all clients and rounds, no activation checkpointing, and `per_device`, the split of a step into
micro-batches that was measured to be fastest. In favour of both: one process and one model for all clients; the
optimizer step takes all of a client's problems; no dropout, no logging, no checkpoints, no old log-probs, no reference
model.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

# Nothing phones home; read when Flower and the hub are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from benchmarks.cases import Case
from benchmarks.measure import Phases
from fedrlvr.simulation.grid import LocalGrid

RANK, ALPHA = 8, 16
Pace = Callable[[int, dict[str, float], int, int], bool]
"""Called after each round (0: before the first) with its phases and tokens sampled and trained; False ends the run."""


class OneByOneGrid(LocalGrid):
    """Calls one client app in this process, for one message after another, without the local grid's copies."""

    def __init__(self, app: ClientApp, nodes: Iterable[int]) -> None:
        self.app = app
        contexts = {node: Context(1, node, {"partition-id": i}, RecordDict(), {}) for i, node in enumerate(nodes)}
        super().__init__(lambda messages, states: [app(*pair) for pair in zip(messages, states, strict=True)], contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Every client's reply, computed one after another."""
        replies = []
        for i, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(i)
            replies.append(self.app(message, self.contexts[message.metadata.dst_node_id]))
        return replies


class FlowerTrl:
    """The baseline on a case, with everything that is set up once."""

    def __init__(self, case: Case, *, per_device: int | None = None, documented: bool = False) -> None:
        """per_device: responses in a micro-batch; None takes all of a client's step at once, as documented 8.

        Raises:
            ValueError: per_device does not divide a client's responses of a step.
        """
        logging.getLogger("flwr").setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        disable_progress_bars()
        self.case = case
        rows = case.problems * case.responses
        self.per_device = per_device or (min(8, rows) if documented else rows)
        if rows % self.per_device:
            raise ValueError(f"{self.per_device} responses a micro-batch do not divide the {rows} of a step")
        self.phases = Phases()
        self.tokens = 0
        self.rounds: dict[int, int] = {}
        self.documented = documented
        self.tokenizer = AutoTokenizer.from_pretrained(case.model)
        self.base = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
        lora = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.output = tempfile.TemporaryDirectory()
        torch.manual_seed(0)
        if documented:
            self.lora: LoraConfig | None = lora
            self.trainer: Any = None
            self.model: Any = None
            self.initial = get_peft_model_state_dict(get_peft_model(self.base, lora))
            self.base = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
        else:
            self.lora = None
            self.trainer = self._trainer(lora, case.draw(0, 0))
            self.model = self.trainer.model
            self.initial = {k: v.clone() for k, v in get_peft_model_state_dict(self.model).items()}

    def run(self, pace: Pace) -> None:
        """Rounds of FedAvg until `pace` says to stop."""
        client_app = ClientApp()

        @client_app.train()
        def train(message: Message, context: Context) -> Message:
            return self._train(message, int(context.node_config["partition-id"]))

        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            strategy = FedAvg(
                fraction_evaluate=0.0, min_train_nodes=self.case.clients, min_available_nodes=self.case.clients
            )

            def after(round_: int, arrays: ArrayRecord) -> None:
                tokens, self.tokens = self.tokens, 0
                if not pace(round_, self.phases.take(), tokens, tokens):
                    raise _Enough

            strategy.start(grid, ArrayRecord(self.initial), num_rounds=1_000_000, evaluate_fn=after)

        grid = OneByOneGrid(client_app, range(1, self.case.clients + 1))
        try:
            server_app(grid, Context(1, 0, {}, RecordDict(), {}))
        except _Enough:
            self.output.cleanup()

    def _train(self, message: Message, client: int) -> Message:
        """The client's `train` function: weights in, one optimizer step, weights out."""
        round_ = int(message.content["config"]["server-round"])  # type: ignore[arg-type]
        problems = self.case.draw(client, round_ - 1)
        if self.lora is not None:
            self.trainer = self.phases.timed("build the trainer", self._trainer)(self.lora, problems)
            self.model = self.trainer.model
        set_peft_model_state_dict(self.model, message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
        self.trainer.train_dataset = _dataset(problems)
        self.trainer.optimizer = None  # clients share the trainer, not their moments; ours start afresh too
        result = self.phases.timed("train", self.trainer.train)()
        reply = RecordDict(
            {
                "arrays": ArrayRecord(get_peft_model_state_dict(self.model)),
                "metrics": MetricRecord(
                    {"num-examples": len(self.case.pools[client]), "train_loss": float(result.training_loss)}
                ),
            }
        )
        if self.lora is not None:
            self.base = self.model.unload()
            self.trainer = self.model = None
        return Message(reply, reply_to=message)

    def _trainer(self, lora: LoraConfig, problems: list[Any]) -> Any:
        case = self.case
        unless_documented: dict[str, Any] = {} if self.documented else {"activation_checkpointing": False}
        settings = GRPOConfig(
            output_dir=self.output.name,
            use_cpu=True,
            bf16=False,
            max_steps=1,
            per_device_train_batch_size=self.per_device,
            gradient_accumulation_steps=case.problems * case.responses // self.per_device,
            **unless_documented,
            num_generations=case.responses,
            max_completion_length=case.max_new_tokens,
            temperature=1.0,
            loss_type="dapo",
            beta=0.0,
            epsilon=0.2,
            scale_rewards="group",
            optim="adamw_torch",
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=0.9,
            adam_beta2=0.99,
            weight_decay=0.0,
            max_grad_norm=1.0,
            shuffle_dataset=False,
            disable_dropout=True,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer: Any = GRPOTrainer(
            model=self.base,
            reward_funcs=self._reward,
            args=settings,
            train_dataset=_dataset(problems),
            processing_class=self.tokenizer,
            peft_config=lora,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        score = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = self.phases.timed("sample and grade", score)
        return trainer

    def _reward(
        self, completions: list[str], completion_ids: list[list[int]], **columns: list[Any]
    ) -> list[float | None]:
        from fedrlvr.tasks import Problem

        self.tokens += sum(map(len, completion_ids))
        keys = ("prompts", "answer", "id", "source", "kind")
        rows = zip(*(columns[key] for key in keys), strict=True)
        return [self.case.reward(text, Problem(*row)) for text, row in zip(completions, rows, strict=True)]


class _Enough(Exception):
    """Raised out of Flower's loop, which has no other end than its number of rounds."""


def _dataset(problems: list[Any]) -> Dataset:
    return Dataset.from_list(
        [{"prompt": p.prompt, "answer": p.answer, "id": p.id, "source": p.source, "kind": p.kind} for p in problems]
    )
