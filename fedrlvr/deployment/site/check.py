"""`fedrlvr site check`: checks everything that an organisation needs, before a run starts.

Each check says what is there, or what is wrong and what to do. None of them disturbs a SuperNode or a worker that runs.
"""

from __future__ import annotations

import datetime
import shlex
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedrlvr.config.prompt import PromptConfig
from fedrlvr.deployment import certificates
from fedrlvr.deployment.site.config import Organisation, load_site
from fedrlvr.deployment.site.link import running
from fedrlvr.deployment.site.wording import asked_for, example, stated
from fedrlvr.errors import ConfigError, DataError, FedrlvrError, GradingError
from fedrlvr.hosts import split_address
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.reporting import units
from fedrlvr.reporting.doctor import Finding, accelerator, disk

if TYPE_CHECKING:
    from fedrlvr.policy.base import Base
    from fedrlvr.tasks.prompts import Prompt

CONNECT_S = 5.0
MOST_GRADED = 1000
"""Largest number of gold answers graded in a task, spread evenly over it."""
SOON_DAYS = 30
UNREACHED = "connection"
"""Name of the finding about the SuperLink's answer: that it gives none or, without TLS, that it gives one."""
_CERTIFICATE_ADVICE = {
    10: "The certificate has expired, or this machine's clock is wrong. The operator renews it (superlink renew).",
    9: "The certificate is not valid yet: this machine's clock, or the SuperLink's, is wrong.",
    **dict.fromkeys(
        (62, 64),
        "The certificate is of this authority, but not for this name. Use a name it is for, or have the operator add "
        "yours (fedrlvr superlink renew --name).",
    ),
    **dict.fromkeys(
        (2, 18, 19, 20, 21, 27),
        "Another authority than {authority} signed it. Have the operator's ca.crt sent again and compare its "
        "fingerprint by telephone; if it is the right one, somebody else answers at this address.",
    ),
}
"""What to do, by OpenSSL's code (X509_V_ERR_...): expired, not valid yet, another name or address, authority unknown.
"""


def examine_site(path: Path, *, skip_model: bool = False, experiment: PromptConfig | None = None) -> Iterator[Finding]:
    """Run all checks, cheap ones first, and yield each finding as soon as it is there.

    experiment: the prompts of a run to come; None: those that the newest run of each task has asked for.
    """
    try:
        org = load_site(path)
    except ConfigError as error:
        yield Finding("site.toml", str(path), "problem", str(error))
        return
    config = org.config
    yield Finding("site.toml", f"{org.name}; tasks {', '.join(config.tasks)}; models {', '.join(config.models)}")
    yield key_pair(org)
    yield room(org)
    yield port(org)
    yield egress(org)
    reached = None if config.insecure else server_certificate(config.superlink, org.root_certificates)
    if reached is not None:
        yield reached
    if reached is None or reached.status != "problem":
        yield registration(org)
    prompts: dict[str, list[Prompt]] = {}
    for name in config.tasks:
        yield task(org, name, prompts, experiment)
        if name in prompts:
            yield prompt_of(org, name, prompts[name][0], experiment)
    if skip_model:
        return
    if config.machine.device != "cpu":
        yield from (finding for finding in accelerator(None) if finding.name.startswith(("GPU", "torch")))
    for name in config.models:
        yield from model(org, name, prompts)
    yield worker(org)


def key_pair(org: Organisation) -> Finding:
    """Check the private key: it exists, only its owner can read it, and it matches the public key beside it."""
    if org.config.insecure:
        return Finding("key", "none is used (insecure)", "note", "Without keys only a SuperLink on this machine.")
    public_file = org.key.with_name(org.key.name + ".pub")
    try:
        key = certificates.read_node_key(org.key).public_key()
        mark = certificates.key_fingerprint(key)
        if org.key.stat().st_mode & 0o077:
            advice = f"Others may read it: chmod 600 {shlex.quote(str(org.key))}"
            return Finding("key", f"{mark} in {org.key}", "problem", advice)
        if certificates.read_public_key(public_file) != key:
            advice = f"{public_file} belongs to another key. Make it anew: ssh-keygen -y -f {shlex.quote(str(org.key))}"
            return Finding("key", f"{mark} in {org.key}", "problem", advice)
    except ConfigError as error:
        return Finding("key", str(org.key), "problem", str(error))
    return Finding("key", f"{mark} in {org.key}")


def room(org: Organisation) -> Finding:
    """Check that the worker can write its state to disk."""
    finding = disk(org.state)
    if not finding.advice:
        return finding
    advice = f"The worker keeps adapters and optimizer moments in {org.state}: it needs room and the right to write."
    return replace(finding, advice=advice)


def port(org: Organisation) -> Finding:
    """Check that the SuperNode's port is free, or used by this organisation's own SuperNode."""
    finding = free_port(org)
    if finding.status == "problem" and (pid := running(org)) is not None:
        return Finding("port", f"{org.config.port}, on which this organisation's SuperNode listens (site run: {pid})")
    return finding


def free_port(org: Organisation) -> Finding:
    """Check that the SuperNode's port is free."""
    number = org.config.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the SuperNode does
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            advice = "Another program listens there. Give another `port` in site.toml: each SuperNode has its own."
            return Finding("port", f"{number} is taken", "problem", advice)
    return Finding("port", f"{number} on 127.0.0.1 is free")


def egress(org: Organisation) -> Finding:
    """Check the decision log, without which nothing leaves, and that the site's own rule can be loaded."""
    settings, log = org.config.egress, DecisionLog(org.state)
    if fault := log.verify().fault:
        advice = f"Nothing leaves so. Find out who changed it, then move {log.path} and {log.head_path.name} away."
        return Finding("egress", fault, "problem", advice)
    value = f"approve {settings.approve}"
    if settings.rule is not None:
        from fedrlvr.privacy.rule import SiteRule

        rule = SiteRule(settings.rule, org.directory, settings.rule_seconds)
        value += f", rule {settings.rule}"
        try:
            rule.start()
        except GradingError as error:
            return Finding("egress", value, "problem", str(error))
        finally:
            rule.close()
    return Finding("egress", value)


def server_certificate(address: str, authority: Path | None) -> Finding:
    """Check that the SuperLink answers at its address, with a certificate of the authority in ca.crt.

    address: host:port. authority: the PEM file; None takes the system's.
    """
    name, host, number = "certificate", *split_address(address)
    try:
        if authority is not None:
            certificates.read_certificate(authority)
        context = ssl.create_default_context(cafile=authority)
    except (ConfigError, OSError) as error:
        return Finding(name, f"{authority}", "problem", str(error))
    try:
        with (
            socket.create_connection((host, number), CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Finding(name, f"of {address}: {error.verify_message}", "problem", _certificate_advice(error, authority))
    except ssl.SSLError as error:
        advice = f"What listens at {address} does not speak TLS as a SuperLink does. Is the port right?"
        return Finding(name, f"{address}: {error.reason or error}", "problem", advice)
    except OSError as error:
        return Finding(UNREACHED, f"{address}: {error.strerror or error}", "problem", _connect_advice(error, host))
    end = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), datetime.UTC)
    days = (end - datetime.datetime.now(datetime.UTC)).days
    value = f"{address} has one of this authority, good for {days} more days"
    if days < SOON_DAYS:
        return Finding(name, value, "note", "Ask the SuperLink's operator to renew it (fedrlvr superlink renew).")
    return Finding(name, value)


def registration(org: Organisation, known_until: str = "") -> Finding:
    """Check that the SuperLink knows this organisation's key.

    known_until: the time when it last did, for the advice where it does not any more.
    """
    if org.config.insecure:
        host, number = split_address(org.config.superlink)
        try:
            socket.create_connection((host, number), CONNECT_S).close()
        except OSError as error:
            value = f"{org.config.superlink}: {error.strerror or error}"
            return Finding(UNREACHED, value, "problem", _connect_advice(error, host))
        return Finding(UNREACHED, f"{org.config.superlink} answers; without TLS and keys")
    from fedrlvr.deployment import flower_private as flowerparts

    try:
        key = certificates.read_node_key(org.key)
        authority = None if org.root_certificates is None else org.root_certificates.read_bytes()
        known = flowerparts.is_registered(org.config.superlink, authority, key)
    except (ConfigError, OSError) as error:
        return Finding("registration", "cannot be found out", "problem", str(error))
    mark = certificates.key_fingerprint(key.public_key())
    if known:
        return Finding("registration", f"{org.config.superlink} knows the key {mark}")
    advice = (
        f"Send {org.key}.pub to the SuperLink's operator, who lets it in with: fedrlvr superlink register DIRECTORY "
        f"{org.key.name}.pub --name {org.name}"
    )
    value = f"{org.config.superlink} does not know the key {mark}"
    if known_until:
        value += f", which it knew until {known_until}"
        advice = f"If its operator has revoked the key, ask why. If its database was lost: {advice}"
    return Finding("registration", value, "problem", advice)


def task(
    org: Organisation, name: str, prompts: dict[str, list[Prompt]], experiment: PromptConfig | None = None
) -> Finding:
    """Check a task: its problems load, some are for training and some held out, and every gold answer earns its reward.

    prompts: takes the task's prompts, worded as the task and the server say together.
    """
    from fedrlvr.tasks import rewards_for, validate
    from fedrlvr.tasks.client_data import ClientData
    from fedrlvr.tasks.deal import instruction_of, own_problems

    title, data, limits = f"task {name}", org.task(name), org.config.limits
    try:
        try:
            train, validation, test = own_problems(data, unlabelled=False, seed=0)
        except DataError:
            if not ("desk" in limits.labels_from or "majority" in limits.supervision):
                raise
            train, validation, test = own_problems(data, unlabelled=True, seed=0)
        problems = [*train, *validation, *test]
        graded = problems[:: -(-len(problems) // MOST_GRADED) or 1]
        verdict = validate(graded, rewards_for(data.rewards, arithmetic=data.arithmetic).verifier, attacked=20)
    except FedrlvrError as error:
        return Finding(title, "its problems cannot be used", "problem", str(error))
    value = f"{len(train)} problems for training, {len(test)} held out; {verdict.checked} gold answers graded"
    if not verdict.ok:
        first = verdict.failures[0]
        advice = f"The reward is wrong on {len(verdict.failures)} of them. Problem {first.id}: {first.reason}."
        return Finding(title, value, "problem", advice)
    if len(train) < max(1, limits.least_problems):
        advice = f"Training is refused below limits.least_problems = {limits.least_problems}."
        return Finding(title, value, "problem", advice)
    wording = _asked(org, name, experiment)[1].worded(data.prompt)
    reward, instruction = (
        rewards_for(data.rewards, arithmetic=data.arithmetic).verifier,
        instruction_of(data, wording),
    )
    client = ClientData.of(org.name, train, test, reward, wording=wording, instruction=instruction)
    try:
        prompts[name] = [client.prompts.ask(problem) for problem in problems]
    except DataError as error:
        return Finding(title, "its prompts cannot be made", "problem", str(error))
    if verdict.unlabelled:
        advice = "Only runs that ask people, or nobody, for labels can train on it."
        return Finding(title, f"{value}, {verdict.unlabelled} without an answer", "note", advice)
    return Finding(title, value)


def _asked(org: Organisation, name: str, experiment: PromptConfig | None) -> tuple[str, PromptConfig]:
    """Who words the prompts of a task, and how."""
    if experiment is not None:
        return "by the configuration given", experiment
    run = asked_for(org, name)
    return (f"as run {run[0]} asked", run[1]) if run else ("no server has asked yet", PromptConfig())


def prompt_of(org: Organisation, name: str, first: Prompt, experiment: PromptConfig | None = None) -> Finding:
    """Show how a task's prompts are worded, and the first of them. It is a private problem, for this terminal alone."""
    source, asks = _asked(org, name, experiment)
    lines = [source, *stated(org, name, asks), "the first problem, on this terminal only:"]
    lines += [f"| {line}" for line in example(first, asks)]
    return Finding(f"prompt {name}", "\n         ".join(lines))


def model(org: Organisation, name: str, prompts: dict[str, list[Prompt]]) -> Iterator[Finding]:
    """Check a model: it loads on this organisation's device, an adapter changes its output, and each task's prompts fit
    it."""
    import torch

    from fedrlvr.config import LoraConfig
    from fedrlvr.policy.base import load_base, threads_here
    from fedrlvr.policy.choices import choices
    from fedrlvr.policy.cohort import Cohort

    title, settings = f"model {name}", org.model(name)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(org.engine.threads or threads_here(settings))
        base = load_base(settings)
        # What organisations compare, and a message is refused by.
        ids = f"model {base.model_id}, weights {base.weights_id}, tokenizer {base.tokenizer_id}"
        yield Finding(title, f"{ids}; on {base.device}{_free(base)}")
        cohort = Cohort(base, LoraConfig(), org.engine)
        cohort.self_check()
        yield Finding(f"{title}, adapter", "reaches the sampler, and sampling agrees with training")
        for part, choice in choices(cohort).items():
            yield Finding(f"{title}, {part}", choice)
        for task_name, asked in prompts.items():
            yield _prompts(base, f"{title}, task {task_name}", asked, org.task(task_name).max_prompt_tokens)
    except FedrlvrError as error:
        yield Finding(title, "cannot be used", "problem", str(error))
    finally:
        torch.set_num_threads(before)


def worker(org: Organisation) -> Finding:
    """Check that the worker starts and answers. A worker that was not running is stopped again."""
    from fedrlvr.deployment.site import socket as channel

    try:
        running = channel.status(org) is not None
        channel.ask(org, {"type": "status"}, b"")
        if not running:
            channel.stop(org)
    except FedrlvrError as error:
        return Finding("worker", "does not answer", "problem", str(error))
    return Finding("worker", "runs and answers" if running else "starts and answers")


def _prompts(base: Base, title: str, prompts: list[Prompt], limit: int | None) -> Finding:
    lengths = [len(ids) for ids in base.encode_all(prompts)]
    fitting = [length for length in lengths if limit is None or length <= limit]
    longest = max(fitting, default=0)
    value = f"prompts of up to {longest} tokens; {base.max_length - longest} are left for a response"
    if dropped := len(lengths) - len(fitting):
        value += f"; {dropped} longer than max_prompt_tokens = {limit} are left out"
    if not fitting or longest >= base.max_length:
        advice = "Set max_prompt_tokens of the task so that prompts and responses fit the model, and some remain."
        return Finding(title, value, "problem", advice)
    return Finding(title, value)


def _free(base: Base) -> str:
    import torch

    if base.device.type != "cuda":
        return ""
    return f", {units.size(torch.cuda.mem_get_info(base.device)[0])} free beside it"


def _connect_advice(error: OSError, host: str) -> str:
    if isinstance(error, socket.gaierror):
        return f"The name {host} is unknown here. Is `superlink` in site.toml right, and the name service reachable?"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{host} can be reached, but nothing listens on that port. Does the SuperLink run, and is the port right?"
        )
    if isinstance(error, TimeoutError):
        return f"No answer in {CONNECT_S:.0f} s. A firewall may be between; only outgoing connections are needed here."
    return "Is this machine connected, and `superlink` in site.toml right?"


def _certificate_advice(error: ssl.SSLCertVerificationError, authority: Path | None) -> str:
    unknown = f"Do not connect; ask the SuperLink's operator (OpenSSL's code {error.verify_code})."
    return _CERTIFICATE_ADVICE.get(error.verify_code, unknown).format(authority=authority)
