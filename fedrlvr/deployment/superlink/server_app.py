"""The ServerApp: the program that Flower starts at the SuperLink for each run.

The run lies in a directory of the SuperLink's machine, like a run of the local engine; `fedrlvr federate` makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedrlvr.config import Config, PubSwapCoordination, load_config, load_resolved, parse_config
from fedrlvr.deployment.flower_private import say_in_a_sentence
from fedrlvr.deployment.superlink.disclosure import check, travels
from fedrlvr.deployment.superlink.grid import SuperLinkGrid, names_here
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import RoundError
from fedrlvr.output import echo
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.progress import PlainProgress
from fedrlvr.seeds import stream
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.server.run import RunResult, Server, public_set
from fedrlvr.server.run_directory import locked, new_directory, run_id
from fedrlvr.server.starting_adapter import beginning
from fedrlvr.simulation.run import also_of, new_cohort, settled
from fedrlvr.tasks import rewards_for
from fedrlvr.tasks.deal import public_problems
from fedrlvr.tasks.problem import Problem
from fedrlvr.zoo import embedded_config

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the run that the run config names.

    Raises:
        FedrlvrError: the run has failed; Flower marks it so, and shows the text to whoever follows its log.
    """
    import httpx

    say_in_a_sentence()
    try:
        result = serve(grid, context.run_config)
    except httpx.HTTPStatusError as error:
        if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
            raise
        raise RoundError(
            f"the SuperLink answers with the error {error.response.status_code}: its disk may be full, and its log has "
            "the cause. Rounds that are done are kept."
        ) from error
    _say(f"all rounds are done: {result.directory}")


def serve(grid: Grid, settings: Mapping[str, Any]) -> RunResult:
    """Run the rounds that are not done.

    settings: Flower's run config. `directory`: a run directory with a config.json; or `experiment`: a TOML file (""
    is the embedded default, with whoever is connected). `wait`: seconds in which all clients may connect. `insecure`.

    Raises:
        FedrlvrError: whatever is wrong; rounds that are done stay done.
    """
    wait = float(settings.get("wait", 300.0))
    insecure = bool(settings.get("insecure", False))
    config, directory = _configured(grid, settings, wait, insecure)
    check(config)
    with locked(directory):  # a ServerApp may outlive its SuperLink for a while, when that was killed
        return _serve(grid, config, directory, wait, insecure)


def _serve(grid: Grid, config: Config, directory: Path, wait: float, insecure: bool) -> RunResult:
    cohort = new_cohort(config)
    public = public_problems(config, cohort.base) if isinstance(config.coordination, PubSwapCoordination) else []
    begin = beginning(config, directory, cohort.fresh_adapter(stream(config.run.seed, "adapter")))
    for line in travels(
        config, sum(t.numel() for _, t in begin.adapter.tensors()), config.aggregation.rule.changes_base
    ):
        _say(line)
    names = config.federation.present
    terms = terms_of(config, cohort, run_id(directory))
    link = SuperLinkGrid(grid, names, terms, quorum=config.federation.quorum, say=_say, ask_names=insecure)
    link.gather(wait)
    data = config.data
    rewards = rewards_for(data.rewards, arithmetic=data.arithmetic, directory=config.run.started_in)
    server = Server(
        config,
        directory,
        cohort.base,
        begin,
        public_set(public, cohort.base, rewards.verifier),
        PlainProgress(),
        also=also_of(config, cohort),
    )
    resume = bool(Checkpoints(directory, config.run.keep_checkpoints).rounds())
    holdings = {"digest": _digest(public), "public": len(public)}
    return server.go(link, dict(enumerate(names, start=1)), holdings, {}, resume=resume)


def terms_of(config: Config, cohort: Cohort, run: str) -> dict[str, Terms]:
    """Terms of the run that each client's messages carry."""
    base, name = cohort.base, config.model.name
    return {
        client: Terms(
            run=run,
            client=client,
            clients=len(config.federation.training),
            rounds=config.train.rounds,
            task=config.federation.task,
            model=Path(name).name if Path(name).is_dir() else name,
            model_id=base.model_id,
            weights_id=base.weights_id,
            tokenizer_id=base.tokenizer_id,
            prompt=config.prompt,
            rank=config.lora.rank_of(client),
            largest=config.lora.largest,
            alpha=config.lora.alpha,
            targets=config.lora.targets,
            max_prompt_tokens=config.data.max_prompt_tokens,
        )
        for client in config.federation.names
    }


def _configured(grid: Grid, settings: Mapping[str, Any], wait: float, insecure: bool) -> tuple[Config, Path]:
    if place := str(settings.get("directory", "")):
        directory = Path(place)
        return load_resolved(directory / "config.json"), directory
    experiment = str(settings.get("experiment", ""))
    if experiment:
        config = load_config(experiment)
    else:
        names = names_here(grid, wait, ask_names=insecure)
        tree = load_config(embedded_config()).model_dump(mode="json")
        tree["federation"]["clients"] = names
        config = parse_config(tree)
    directory = (config.run.directory or new_directory(config.run.name)).absolute()
    return settled(config, directory), directory


def _digest(public: list[Problem]) -> str:
    """Hash of the public problems, which are all the server knows."""
    digest = hashlib.sha256()
    for problem in public:
        digest.update(json.dumps([problem.id, problem.prompt, problem.answer, problem.source]).encode())
    return digest.hexdigest()


def _say(line: str) -> None:
    echo(line)
