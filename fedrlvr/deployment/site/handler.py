"""The worker's handling of a message: check against terms and limits, compute, remember, answer.

It holds what is dear to make: the model that was last asked for, the cohort on it, the problems of the run. What it
knows of a run is on disk (round_states.py), so another worker in its place goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

from fedrlvr.client import personal
from fedrlvr.client.app import CohortApp, asked_in
from fedrlvr.client.request import ClientRequest
from fedrlvr.config import Asking
from fedrlvr.deployment.site import limits
from fedrlvr.deployment.site.config import Organisation, load_site
from fedrlvr.deployment.site.counts import AnsweredCounts
from fedrlvr.deployment.site.egress import NOT_APPROVED, Egress
from fedrlvr.deployment.site.holdings import Holdings
from fedrlvr.deployment.site.loaded_model import LoadedModel, load_model
from fedrlvr.deployment.site.release import SiteRelease
from fedrlvr.deployment.site.reply_card import ComputedReply, parts_of
from fedrlvr.deployment.site.round_states import Past, RoundStates, begin_run
from fedrlvr.deployment.site.socket import secret, state_directory
from fedrlvr.deployment.site.withdrawals import withdrawn_runs
from fedrlvr.deployment.site.wording import keep
from fedrlvr.deployment.terms import TERMS, Terms, read_terms
from fedrlvr.errors import AdapterError, LimitError, MemoryLimitError, MessageError, printable
from fedrlvr.files import atomic_directory
from fedrlvr.out_of_memory import memory_limit
from fedrlvr.output import logger
from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import base_reference, save_peft
from fedrlvr.privacy.accountant import mu_after
from fedrlvr.privacy.card import digest_of, spent_text
from fedrlvr.reporting.observer import Event, Observer, StepEnded
from fedrlvr.reporting.responses import ResponseLog
from fedrlvr.seeds import stream
from fedrlvr.server.run_directory import personal_directory
from fedrlvr.simulation.grid import delivered
from fedrlvr.tasks import rewards_for, task_of
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.deal import fit_client, instruction_of, own_problems
from fedrlvr.tasks.golds import check_golds
from fedrlvr.tasks.problem import Problem
from fedrlvr.wire.messages import (
    DELTA,
    MOST_REASON,
    EvaluateRequest,
    RespondRequest,
    StretchRequest,
)
from fedrlvr.wire.public_messages import RESPOND, read_problems
from fedrlvr.wire.serialization import pack, unpack

_log = logger("deployment")

_MOST_PUBLIC = 1 << 16
"""Public problems that are counted at all; limits.public_problems says how many are answered."""
_NODE = 1
_WITHHELD = b"withheld: "
"""Begins what is kept in a reply's place where a floor was missed, before the reason. No packed reply begins so."""
SAMPLING_SECRET = "sampling.secret"
"""The file in the state directory that holds the secret which is mixed into the organisation's private streams."""


@dataclass(frozen=True)
class RunData:
    """Problems of an organisation for one run.

    key: what they were made for. answered: each for training has an answer.
    """

    key: tuple[Any, ...]
    data: ClientData
    answered: bool


class StepLog(Observer):
    """Writes a run's steps into the site's log."""

    def __init__(self, tell: Callable[[str], None], run: str) -> None:
        self.tell, self.run = tell, run

    def notify(self, event: Event) -> None:
        """Write one line for each step."""
        if not isinstance(event, StepEnded):
            return
        where = f"run {self.run}, round {event.round}: step {event.step} of {event.steps}"
        reward = ", ".join(f"{reward:.3f}" for reward in event.rewards.values())
        self.tell(f"{where}: mean reward {reward}, {event.tokens:,} tokens")


class Answering:
    """One organisation's answers to messages, and the model that it keeps in memory.

    tell: takes a line for the site's log.
    """

    def __init__(self, org: Organisation, tell: Callable[[str], None]) -> None:
        self.org, self.tell = org, tell
        self.egress = Egress(org, tell)
        self._holdings = Holdings(tell)
        self.models: dict[str, LoadedModel] = {}
        self._run_data: dict[str, RunData] = {}
        self._run, self._states = "", RoundStates(Path(), "", tell)

    def reply(self, header: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Reply to a message, or the reason for refusing it, as header and content. It raises nothing."""
        where = "a message"
        try:
            self._follow_site_toml()
            message = _read(header, data)
            terms = read_terms(message.content)
            del message.content[TERMS]
            request = asked_in(message)
            where = f"run {terms.run}, round {request.round}"
            with memory_limit():
                answer = self._answer(where, message, terms, request, _known_by(request, message, data))
            if answer.startswith(_WITHHELD):
                return {"ok": False, "kind": "withheld", "reason": answer.removeprefix(_WITHHELD).decode()}, b""
            return {"ok": True}, answer
        except (LimitError, MessageError, AdapterError) as error:
            reason = printable(str(error))[:MOST_REASON]
            self.tell(f"{where}: refused: {reason}")
            _log.warning("%s: refused: %s", where, reason)
            return {"ok": False, "kind": "refused", "reason": reason}, b""
        except MemoryLimitError as error:  # the model stays: what the message needed beside it is free again
            self.tell(f"{where}: failed: {error.public}; worker.log has the sizes")
            _log.exception("%s: failed", where)
            reason = f"failed at {self.org.name}: {error.public}"[:MOST_REASON]
            return {"ok": False, "kind": "failed", "reason": reason}, b""
        except Exception as error:  # whatever it is, the worker lives on, and its text may hold what must not leave
            self.tell(f"{where}: failed ({type(error).__name__}); worker.log says why")
            _log.exception("%s: failed", where)
            reason = f"failed at {self.org.name} ({type(error).__name__}); the log there says why"
            return {"ok": False, "kind": "failed", "reason": reason}, b""

    def _follow_site_toml(self) -> None:
        """Take over what has changed in site.toml since the last message.

        Raises:
            ConfigError: it cannot be used any more.
        """
        changed, before = load_site(self.org.path), self.org.config
        after = changed.config
        names = [name for name in type(after).model_fields if getattr(after, name) != getattr(before, name)]
        if not names:
            return
        self.tell(f"site.toml has changed ({', '.join(names)}), which holds from this message on")
        if {"models", "machine", "engine"} & set(names):
            self.models.clear()
        self._run_data.clear()
        self._run = ""
        self.egress.close()
        self.org, self.egress = changed, Egress(changed, self.tell)

    def _answer(
        self, where: str, message: Message, terms: Terms, request: StretchRequest | EvaluateRequest, known_by: str
    ) -> bytes:
        """The reply's content, or the reason why it is withheld. The same message again gets the same reply, and is
        neither computed nor counted again. known_by: text by which a message is known to be the same.

        Raises:
            LimitError: more is asked than is allowed.
            MessageError, AdapterError: the message cannot be used.
            FedrlvrError, and whatever else goes wrong while it is computed or written down; what is remembered is then
                what it was.
        """
        kind, message_id = message.metadata.message_type, message.metadata.message_id
        public = len(_public(message))
        self.tell(f"{where}: asked to {_asked(request, public)}")
        self._check_terms(terms)
        delta = None
        if DELTA in message.content:
            from fedrlvr.wire.model_delta import read_delta

            delta = read_delta(message)
        allowed = self.org.config.limits
        limits.check(allowed, kind, terms, request, public, delta)
        states = self._states_of(terms)
        if (before := states.reply_to(known_by)) is not None:
            self.tell(f"{where}: the same message again, so the same answer is sent")
            self.egress.repeat(before, message_id)
            return before
        self.egress.drop_waiting()
        cohort = self._cohort(terms)
        self._count(kind, terms, request)  # before the problems are looked at, since a refusal tells of them too
        # Only now, or messages that are refused could drive out the memories of other runs.
        begin_run(self.org.state / "runs", terms.run, self.org.config.keep_runs)
        client = self._client_data(terms, request, cohort.base)
        if isinstance(request, EvaluateRequest):
            limits.check_evaluation(allowed, self.org.name, request, len(client.split(request.evaluate.split)))
        else:
            limits.check_problems(allowed, request, len(client.train), name=self.org.name)
            limits.check_choice(allowed, self.org.name, request, len(client.validation))
        self.models[terms.model].check(request.seed, self.tell)
        initial = cohort.fresh_adapter(stream(request.seed, "adapter"))
        release = SiteRelease(allowed, terms.task, AnsweredCounts(self.org.state))
        log = ResponseLog(self.org.state / "runs" / terms.run, self.org.config.responses)
        app = CohortApp(cohort, {_NODE: client}, initial, StepLog(self.tell, terms.run), release=release, log=log)
        past = _memory(states, app.request(message, _context(RecordDict())))
        context = _context(past.state)
        remembered = RecordDict(dict(past.state))
        (reply,) = app([message], [context])
        if release.noise_alone:
            self.tell(f"{where}: noise alone is sent: {release.noise_alone}")
        withheld, answer = printable(reply.error.reason or "")[:MOST_REASON] if reply.has_error() else "", b""
        if not withheld:
            computed = ComputedReply(
                reply.content, terms, request, kind, release.memory, client, _public(message), cohort.base
            )
            answer = self._approved(computed, message_id)
            if not answer:  # as after a missed floor, nothing learnt in this round is kept
                withheld, context = NOT_APPROVED, _context(remembered)
                if release.memory is not None:
                    release.memory.abandon(context)
        answer = answer or _WITHHELD + withheld.encode()
        answered = app.request(message, context)
        if request.personal and not withheld and not answered.uses_personal:
            self._keep_personal(terms, answered, cohort.base)
        states.save(request.round, past, context, known_by, answer)
        self.tell(f"{where}: withheld: {withheld}" if withheld else f"{where}: sent: {parts_of(reply.content)}")
        return answer

    def _approved(self, reply: ComputedReply, message_id: str) -> bytes:
        """The bytes of a reply that may leave; none if it has to stay here. It may wait for a person.

        Raises:
            CheckpointError: as `Egress.decide`.
        """
        dropped, keep_back = reply.checked(self.org.config.egress)
        if dropped:
            kept = "so the reply stays here" if keep_back else "and were taken out"
            self.tell(
                f"run {reply.terms.run}, round {reply.request.round}: {dropped} responses hold private text, {kept}"
            )
        data = pack(reply.content)
        loss = None
        if reply.is_noised:
            loss = AnsweredCounts(state_directory(self.org)).privacy_loss(self.org.config.limits)
            spent = spent_text(loss.epsilon, loss.left)
            self.tell(f"run {reply.terms.run}, round {reply.request.round}: epsilon: {spent}")
        card = reply.card(self.org, data, dropped, loss)
        return data if self.egress.decide(card, message_id, keep_back=keep_back) else b""

    def _keep_personal(self, terms: Terms, request: ClientRequest, base: Base) -> None:
        """Write the personal adapter that a message left in the memory to the run's directory here, in PEFT's format.

        Raises:
            CheckpointError: it cannot be written.
        """
        place = personal_directory(self.org.state / "runs" / terms.run, self.org.name)
        with atomic_directory(place) as directory:
            name = base_reference(str(self.org.model(terms.model).name))
            save_peft(personal.whole(request), directory, base_name=name, fused_experts=base.fused_experts)
        self.tell(f"run {terms.run}: the personal adapter stays here, in {place}")

    def _count(self, kind: str, terms: Terms, request: StretchRequest | EvaluateRequest) -> None:
        """Count a message that is about to be computed.

        Raises:
            LimitError, CheckpointError: as `AnsweredCounts.count`.
        """
        section = request.supervision if isinstance(request, StretchRequest) else None
        limited = self.org.config.limits.labels is not None
        labels = section.budget_total if limited and isinstance(section, Asking) else None
        noise = request.privacy if isinstance(request, StretchRequest) else None
        mu = 0.0 if noise is None else mu_after(noise.noise)
        AnsweredCounts(state_directory(self.org), tell=self.tell).count(
            self.org.config.limits, self.org.name, terms.task, terms.run, kind, labels, mu
        )

    def _check_terms(self, terms: Terms) -> None:
        """
        Raises:
            MessageError: the message is for somebody else.
            LimitError: the task or the model is none that may be asked for here, or the site has withdrawn.
            CheckpointError: as `withdrawn_runs`.
        """
        config = self.org.config
        if terms.client != config.name:
            raise MessageError(
                f"a message for {terms.client} has reached {config.name}: the name in its site.toml is not the one it "
                "is registered by"
            )
        if terms.run in withdrawn_runs(self.org.state):
            raise LimitError(f"{config.name} has withdrawn from this run (fedrlvr site withdraw)")
        for what, asked, known in (("task", terms.task, config.tasks), ("model", terms.model, config.models)):
            if asked not in known:
                raise LimitError(
                    f"{config.name} has no {what} called {asked[:100]!r} to train on ({what}s in site.toml)"
                )

    def _states_of(self, terms: Terms) -> RoundStates:
        if terms.run != self._run:
            root = self.org.state / "runs" / terms.run
            self._run = terms.run
            self._states = RoundStates(root, self.org.name, lambda line: self.tell(f"run {terms.run}: {line}"))
        return self._states

    # What is held in memory.

    def _cohort(self, terms: Terms) -> Cohort:
        """The cohort that a run's adapters sit on.

        Raises:
            ModelError: the model cannot be loaded, or has no layers that the terms name.
            MessageError: it is another than the server's.
        """
        name = terms.model
        if name not in self.models:
            self.models.clear()  # one at a time: two large ones may not fit
            self._run_data.clear()
            self.models[name] = load_model(self.org, name, self.tell)
        return self.models[name].cohort_for(self.org, terms)

    def _client_data(self, terms: Terms, request: StretchRequest | EvaluateRequest, base: Base) -> ClientData:
        """This organisation as the run sees it.

        Raises:
            ConfigError, DataError, GradingError: as the loaders and graders say, or no problem fits the run.
            LimitError: the site's own rewards do not go with the run's supervision, or changed data are refused.
        """
        section = request.supervision if isinstance(request, StretchRequest) else None
        answers = section is not None and not section.unlabelled
        task = self.org.task(terms.task)
        if self._holdings.changed(self.org.state / "runs" / terms.run, terms.task, task, self.org.config):
            self._run_data.clear()
        limits.check_rewards(self.org.name, terms.task, task.rewards, request)
        wording = terms.prompt.worded(task.prompt)
        limits.check_examples(self.org.name, request, wording)
        lengths = [n for n in (terms.max_prompt_tokens, task.max_prompt_tokens) if n is not None]
        limit, longest = min(lengths, default=None), request.sampling.max_new_tokens
        key = (terms.model_copy(update={"clients": 1}).model_dump_json(), request.seed, longest)
        kept = self._run_data.get(terms.run)
        if kept is None or kept.key != key:
            # Answers that are there are read either way; without them only some kinds of supervision can do.
            lenient = task_of(task.name).takes_labels
            train, validation, test = own_problems(task, unlabelled=lenient, seed=request.seed)
            if task.graded_by_kind:
                check_golds({self.org.name: [*train, *validation, *test]}, task.unreachable_golds)
            if not self.org.config.limits.source_names:
                validation, test = (
                    [replace(problem, source=terms.task) for problem in part] for part in (validation, test)
                )
            rewards = rewards_for(task.rewards, arithmetic=task.arithmetic)
            data = ClientData.of(
                self.org.name,
                train,
                test,
                rewards.verifier,
                training_reward=rewards.training,
                wording=wording,
                instruction=instruction_of(task, wording),
                seed=request.seed,
                validation=validation,
                rank=terms.rank,
                run=terms.run,
                secret=secret(state_directory(self.org), SAMPLING_SECRET),
            )
            if self.org.config.limits.prompt_filter:
                fitted = fit_client(data, base, limit, longest)
            else:
                fitted = fit_client(data, base, task.max_prompt_tokens, longest)
                if limit is not None and limit != task.max_prompt_tokens:
                    self._check_lengths(fitted, base, limit, terms.task)
            kept = RunData(key, fitted, all(problem.answer for problem in train))
            self._run_data = {terms.run: kept}
            keep(self.org.state / "runs" / terms.run, terms.task, terms.prompt)
        if answers and not kept.answered:
            own_problems(task, unlabelled=False, seed=request.seed)  # says which row has none
        ledger = None
        if isinstance(section, Asking):
            desk = section.labels_from == "desk"
            ledger = (self.org.state if desk else self.org.state / "runs" / terms.run) / "ledger.sqlite"
        return replace(kept.data, ledger=ledger)

    def _check_lengths(self, data: ClientData, base: Base, limit: int, task: str) -> None:
        """
        Raises:
            LimitError: a prompt is longer than a server's limit, which would so choose among this site's problems.
        """
        every = (data.train, data.validation, data.test)
        prompts = [data.prompts.ask(problem) for problems in every for problem in problems]
        if any(len(ids) > limit for ids in base.encode_all(prompts)):
            raise LimitError(
                f"{self.org.name} lets no server leave out problems by the length of their prompts "
                f"(limits.prompt_filter), as data.max_prompt_tokens = {limit} would. Set max_prompt_tokens of the task "
                f"{task} in site.toml, or raise the server's"
            )


def _read(header: Mapping[str, Any], data: bytes) -> Message:
    """
    Raises:
        MessageError: header or content are not what a client app sends.
    """
    try:
        message_id = str(header["message_id"])
        if not 0 < len(message_id) <= 200:
            raise ValueError("no id to know a message by that is asked again")
        return delivered(
            unpack(data),
            run_id=int(header["run_id"]),
            node_id=_NODE,
            message_type=str(header["message_type"]),
            group_id=str(header["group_id"]),
            message_id=message_id,
        )
    except MessageError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # a number in JSON may be infinite
        raise MessageError(f"a message with a header that cannot be used ({type(error).__name__})") from None


def _known_by(request: StretchRequest | EvaluateRequest, message: Message, data: bytes) -> str:
    """The text by which a message is known to be the same as an earlier one: its id, but for a request for noise its
    content, so that a round which a server begins anew after a break costs no more privacy."""
    noised = isinstance(request, StretchRequest) and request.privacy is not None
    return digest_of(data) if noised else message.metadata.message_id


def _context(state: RecordDict) -> Context:
    return Context(1, _NODE, {}, state, {})


def _memory(states: RoundStates, request: ClientRequest) -> Past:
    """What this message's answer is computed from."""
    round_ = request.asked.round
    if isinstance(request.asked, EvaluateRequest):
        return states.look(round_)
    return states.go_on(round_) if request.under_way else states.begin(round_)


def _public(message: Message) -> list[Problem]:
    """The public problems of a message; none unless it is one of an exchange."""
    return read_problems(message.content, _MOST_PUBLIC)[0] if message.metadata.message_type == RESPOND else []


def _asked(request: StretchRequest | EvaluateRequest, public: int) -> str:
    """What is asked, in words and counts."""
    if isinstance(request, EvaluateRequest):
        what = "evaluate the personal adapter" if request.personal else "evaluate"
        return f"{what} with {request.evaluate.samples} responses to each held-out problem"
    each = f"{request.train.problems_per_step} problems x {request.sampling.group_size} responses"
    tasks = (
        [f"train {request.steps} steps x {each} with rewards from {request.supervision.type}"] if request.steps else []
    )
    if isinstance(request, RespondRequest):
        tasks.append(f"answer {public} public problems x {request.sampling.group_size} responses")
    else:
        tasks.append("keep the personal adapter" if request.personal else "send the adapter")
    return " and ".join(tasks)
