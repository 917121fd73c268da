"""`fedrlvr site verdict`: what an organisation gains from a federation, found out on its own machine.

The organisation trains alone with the experiment's settings, on its own data and within its own limits. Then the base
model, its adapter trained alone, the adapter of the federation and its personal adapter are evaluated on its own
held-out problems. This is a run of the arm `local` with one client, by the local engine, so it can be interrupted and
goes on. Nothing is sent, and no message asks for it: it is neither counted nor logged as one.

    <state>/verdict/<task>-<hash>/      the run, with verdict.json and report.html
    <state>/verdict/secrets/            a copy of the sampling secret, by the organisation's name
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fedrlvr.adapter import Adapter
from fedrlvr.config import Config, load_resolved, parse_config
from fedrlvr.deployment.site import limits
from fedrlvr.deployment.site.config import MessageType, Organisation
from fedrlvr.deployment.site.handler import SAMPLING_SECRET
from fedrlvr.deployment.site.socket import secret, state_directory
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.files import new_file, private_directory
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import in_model_order
from fedrlvr.reporting.verdict import Verdict
from fedrlvr.server.saved_adapter import SavedRun, load_adapter
from fedrlvr.simulation.alone import AloneRun, Watch, at_rate, check_labels, choose
from fedrlvr.simulation.evaluate import Evaluator
from fedrlvr.simulation.run import new_cohort, settled
from fedrlvr.simulation.verdict import compare, notes_on_rates, unequal, write
from fedrlvr.tasks.deal import deal
from fedrlvr.wire.messages import EvaluateRequest, TrainRequest


@dataclass(frozen=True)
class SiteVerdict:
    """An organisation's own comparison, planned and checked against its limits.

    experiment: what the server ran. runs: train the organisation alone, one for each of run.alone_rates; the first
    holds the verdict.
    """

    org: Organisation
    experiment: Config
    runs: list[AloneRun]

    @property
    def directory(self) -> Path:
        """The directory that the verdict and its report are written to."""
        return self.runs[0].run.directory

    @property
    def todo(self) -> int:
        """Local steps that are still to be done."""
        return sum(alone.steps_left for alone in self.runs)

    def make(self, adapter: Path | None, personal: Path | None, watch: Watch) -> Verdict:
        """Train alone as far as that is not done, compare, and write the verdict into the run's directory.

        adapter: of the federation; None where organisations share none (personal.type).
        personal: of this organisation, if it has one.

        Raises:
            ConfigError: an adapter is missing, or is one that the federation does not have.
            AdapterError: an adapter cannot be read, or is of another model.
            FedrlvrError: as training and evaluation say; rounds that are done stay done.
        """
        stated, keeps = f"personal.type = {self.experiment.personal.type!r}", self.experiment.personal.method.keeps
        if keeps is not None and (adapter is not None or personal is None):
            raise ConfigError(
                f"{stated} leaves no adapter that all organisations share; leave out --adapter, and give this "
                "organisation's own with --personal."
            )
        if adapter is None and personal is None:
            raise ConfigError("Name what is compared with training alone: --adapter DIR, --personal DIR, or both.")
        run = self.runs[0].run
        cohort = new_cohort(run.config)
        federated = None if adapter is None else _loaded(adapter, cohort)
        own_personal = {} if personal is None else {self.org.name: _loaded(personal, cohort)}
        for alone in self.runs:
            alone.train(cohort, watch)
        evaluator = Evaluator(run.config, cohort)
        adapters, factors = choose(self.runs, evaluator)
        rates = None if federated is None else evaluator.of_everybody(federated, str(adapter)).rates
        verdict = compare(evaluator, rates, adapters, own_personal)
        places = {"adapter": adapter, "personal": personal}
        verdict.about.update({name: str(place) for name, place in places.items() if place is not None})
        if len(self.runs) > 1:
            verdict.about["alone_rates"] = factors
        verdict.notes.extend([*notes_on_rates(factors, several=len(self.runs) > 1), *unequal(self.experiment)])
        write(verdict, run)
        return verdict


def plan(org: Organisation, experiment: Config) -> SiteVerdict:
    """Check an experiment against the organisation's file, and settle what is trained alone, and where.

    experiment: the configuration that the server ran.

    Raises:
        ConfigError: the organisation does not take part in it, or has no such task or model.
        LimitError: a setting exceeds a limit; the text names every limit that is in the way.
        CheckpointError: the state directory cannot be written.
    """
    names, task, model = experiment.federation.names, experiment.federation.task, _model_name(org, experiment)
    if org.name not in names:
        raise ConfigError(
            f"federation.clients: {org.name} is none of {', '.join(names)}. Give the configuration that the server ran."
        )
    for what, name, known in (("task", task, org.config.tasks), ("model", model, org.config.models)):
        if name not in known:
            raise ConfigError(f"{org.path}: there is no {what} called {name!r}, which the experiment names ({what}s).")
    check_labels(experiment)
    runs = [_run_alone(org, experiment, model, factor) for factor in experiment.run.alone_rates]
    _check_problems(org, experiment, runs[0].run.config)
    return SiteVerdict(org, experiment, runs)


def _run_alone(org: Organisation, experiment: Config, model: str, factor: float) -> AloneRun:
    """The run that trains the organisation alone at a multiple of the learning rate, in a directory of its own.

    Raises:
        LimitError: the learning rate exceeds a limit.
        CheckpointError: the state directory cannot be written.
    """
    task, config = experiment.federation.task, at_rate(_alone(org, experiment, model), factor)
    _check_limits(org, at_rate(experiment, factor), model)
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    directory = state_directory(org) / "verdict" / f"{task}-{digest}"
    try:
        private_directory(directory.parent)
    except OSError as error:
        raise CheckpointError(f"{directory.parent} cannot be made ({error.strerror}).") from error
    if (directory / "config.json").exists():  # which has its threads settled
        config = load_resolved(directory / "config.json")
        run = config.run.model_copy(update={"directory": directory})
        config = config.model_copy(update={"run": run})
    else:
        config = settled(config, directory)
    return AloneRun(factor, SavedRun(directory, config))


def _loaded(place: Path, cohort: Cohort) -> Adapter:
    """
    Raises:
        AdapterError: there is no adapter, or it is of another model; better said before training than after it.
    """
    loaded = load_adapter(place)
    like = cohort.fresh_adapter(0).at_rank(loaded.rank)
    return in_model_order(loaded, Adapter(like.layers, loaded.alpha), place=str(place))


def _model_name(org: Organisation, experiment: Config) -> str:
    """The model's name in messages: as the experiment has it, or the last part of a path on the server."""
    name = experiment.model.name
    return name if name in org.config.models else Path(name).name


def _alone(org: Organisation, experiment: Config, model: str) -> Config:
    """The configuration of a run of the arm `local` with this one client, on its own data and machine."""
    data, rank = org.task(experiment.federation.task), experiment.lora.rank_of(org.name)
    lengths = [n for n in (experiment.data.max_prompt_tokens, data.max_prompt_tokens) if n is not None]
    config = experiment.in_arm("local")
    tree = config.model_dump()
    tree["run"] = {"name": f"{org.name} alone", "seed": config.run.seed, "secrets": _secrets(org)}
    tree["model"] = org.model(model).model_dump() | {"adapter": tree["model"]["adapter"]}
    tree["prompt"] = experiment.prompt.worded(data.prompt).model_dump()
    tree["lora"]["rank"] = rank
    tree["data"] = data.model_dump(exclude={"prompt"}) | {"max_prompt_tokens": min(lengths, default=None)}
    tree["partition"] = {"type": "iid"}
    tree["federation"] = {"arm": "local", "clients": [org.name], "task": experiment.federation.task}
    tree["evaluate"]["split"] = "test"
    tree["engine"] = org.engine.model_dump()
    return parse_config(tree, where="the experiment at this organisation")


def _secrets(org: Organisation) -> Path | None:
    """The directory with a copy of the sampling secret, with which the organisation trains in a federation too.

    Where limits.scale_free is false none is used: the local engine takes the optimizer of a run with secrets without
    epsilon.
    """
    if not org.config.limits.scale_free:
        return None
    directory = state_directory(org) / "verdict" / "secrets"
    path, data = directory / f"{org.name}.secret", secret(state_directory(org), SAMPLING_SECRET)
    try:
        private_directory(directory)
        if not path.exists() or path.read_bytes() != data:
            path.unlink(missing_ok=True)
            new_file(path, data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error.strerror}).") from error
    return directory


def _check_limits(org: Organisation, experiment: Config, model: str) -> None:
    """Check the experiment as if a server asked for it.

    Raises:
        LimitError: it exceeds a limit.
    """
    config, lora, here = experiment, experiment.lora, "here"
    terms = Terms(
        run="verdict",
        client=org.name,
        clients=len(config.federation.names),
        rounds=config.train.rounds,
        task=config.federation.task,
        model=model,
        model_id=here,
        weights_id=here,
        tokenizer_id=here,
        prompt=config.prompt,
        rank=lora.rank_of(org.name),
        largest=lora.largest,
        alpha=lora.alpha,
        targets=lora.targets,
    )
    # Types of messages are about what leaves, and nothing does.
    allowed = org.config.limits.model_copy(update={"message_types": get_args(MessageType)})
    limits.check(allowed, "train", terms, _training(config), 0)
    limits.check(allowed, "evaluate", terms, _evaluation(config), 0)


def _check_problems(org: Organisation, experiment: Config, config: Config) -> None:
    """
    Raises:
        LimitError: there are too few problems to train on, or an evaluation samples too many tokens.
        ConfigError, DataError, GradingError: as the loaders and graders say.
    """
    (client,) = deal(config).clients
    limits.check_problems(org.config.limits, _training(experiment), len(client.train), name=org.name)
    limits.check_evaluation(org.config.limits, org.name, _evaluation(config), len(client.test))
    if len(experiment.run.alone_rates) > 1 and not client.validation:
        raise ConfigError(
            f"{org.path}: tasks.{experiment.federation.task}.validation_size is {config.data.validation_size}, and the "
            "choice between several learning rates (run.alone_rates) needs validation problems. Set it, or give one "
            "rate with --set run.alone_rates=[0.5]."
        )


def _training(config: Config) -> TrainRequest:
    return TrainRequest(
        round=1,
        seed=config.run.seed,
        sampling=config.sampling,
        steps=config.train.local_steps,
        train=config.train,
        supervision=config.supervision,
    )


def _evaluation(config: Config) -> EvaluateRequest:
    return EvaluateRequest(round=1, seed=config.run.seed, sampling=config.sampling, evaluate=config.evaluate)
