"""Three organisations on their own machines, over Flower: the same adapter as on one machine, and what that costs.

    scripts/bench federation                   about five minutes on two cores; needs Linux and root
    scripts/bench federation --loopback        without machines of their own: no packets are captured

Read `main` from the top: it is what four people would do at four machines, each command given where its owner sits. The
machines are network namespaces of this one (netns.py), joined by a switch, with no way out.

It claims, and ends with exit status 1 where a claim does not hold:

    adapter     it ends with the local engine's adapter: within 1e-4 with the clients there one after another, within a
                thousandth of its norm with all of them in one batch, which rounds sums otherwise
    seconds     a round takes at most 2 s longer than its training and what Flower takes for an app that does nothing
    model       each organisation has loaded the model once
    packets     nobody tries to reach anything but the SuperLink's port
    nothing     of it is left: no process, no open port

Writes docs/results/federation.md and .json.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.federation_parts import (
    CLIENTS,
    FIRST_PORT,
    PORT,
    SERVER,
    Machines,
    edit,
    floor_app,
)
from benchmarks.federation_tables import (
    HARDER,
    Claims,
    compare,
    round_seconds,
    seen,
    site_log,
    traffic,
    training_seconds,
    write,
)

ROOT = Path(__file__).parents[1]
EXPERIMENT = """\
[run]
name = "federation"
seed = {seed}
keep_checkpoints = 1000

[data]
name = "embedded"
train_size = 960
public_size = 64
test_size = 48

[partition]
type = "source"

[federation]
clients = ["clinic-a", "clinic-b", "clinic-c"]

[sampling]
group_size = 8
max_new_tokens = 32

[coordination]
type = "pubswap"
exchanges = 1
public_problems = 4

[train]
rounds = {rounds}
local_steps = 3
problems_per_step = 8
learning_rate = 3e-3

[evaluate]
every = 1

[engine]
threads = 1
"""
IDLE_MINUTES = 0.5
FEW = 3
"""Rounds of the app that does nothing at Flower's own pace, which nothing is claimed about."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, choices=range(2, 101), metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="directory of the report")
    parser.add_argument("--loopback", action="store_true", help="do without network namespaces")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and so tidied up
    work = ROOT / "runs" / "federation" / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    work.mkdir(parents=True)
    (work / "exp.toml").write_text(EXPERIMENT.format(seed=chosen.seed, rounds=chosen.rounds), "utf-8")
    print(f"In {work}:")

    with Machines([SERVER, *CLIENTS], work, loopback=chosen.loopback) as machines:
        address = f"{machines.address(SERVER)}:{PORT}"

        # Each clinic's own problems: in life it has them, here they are what the local engine would deal to it.
        machines.fedrlvr(SERVER, "tasks", "exp.toml", "--write", "data")

        packets = machines.capture()
        # At the server: its certificate, then the SuperLink.
        machines.fedrlvr(SERVER, "superlink", "init", "superlink", "--address", address)
        with running_superlink(machines):
            for number, clinic in enumerate(CLIENTS):
                port = FIRST_PORT + number
                # At each clinic: its keys and its site.toml. The server's operator has given it ca.crt.
                options = ["--name", clinic, "--superlink", address, "--root-certificates", "superlink/ca.crt"]
                options += ["--data", f"data/{clinic}", "--port", str(port)]
                machines.fedrlvr(clinic, "site", "init", clinic, *options)
                edit(work / clinic / "site.toml", instruction="", idle_minutes=IDLE_MINUTES, threads=1)
                # At the server: the clinic has sent its public key.
                key = f"{clinic}/{clinic}.key.pub"
                machines.fedrlvr(SERVER, "superlink", "register", "superlink", key, "--name", clinic)
                # At the clinic: its SuperNode, which stays.
                machines.start(clinic, "site", "run", clinic)
                machines.until_open(clinic, port)

            # At the server: the run, from the very file that the local engine is given below.
            others = machines.others()
            directory = ["--set", "run.directory=federated"]
            machines.fedrlvr(SERVER, "federate", "exp.toml", "--superlink", "superlink", *directory)
            busy = {"fedrlvr": others()}
            ports = machines.open_ports()

            # Nobody asks the clinics for anything any more, and their workers go. Then Ctrl-C for the rest.
            machines.until_workers_went([work / clinic for clinic in CLIENTS], 120 * IDLE_MINUTES)
            for clinic in CLIENTS:
                machines.stop(clinic)
        captured = packets.stop() if packets else None
        left = machines.left()

        # What Flower takes for as many messages in which nothing is done, with its own SuperNodes.
        floors = {}
        with running_superlink(machines):
            for name, prompt, rounds in ((HARDER, True, chosen.rounds), ("as Flower comes", False, FEW)):
                others = machines.others()
                floors[name] = machines.floor(floor_app(work, rounds, prompt=prompt), address, prompt)
                busy[name] = others()

        # The same run by the local engine: all clients in one batch, as it comes, and one after another.
        # The clinics' secrets, which nobody else has in life, give it their random numbers.
        (work / "secrets").mkdir()
        for clinic in CLIENTS:
            shutil.copy(work / clinic / "state" / "sampling.secret", work / "secrets" / f"{clinic}.secret")
        secrets = ["--set", "run.secrets=secrets"]
        machines.fedrlvr(SERVER, "run", "exp.toml", "--set", "run.directory=local", *secrets)
        one_by_one = ["--set", "run.directory=one-by-one", "--set", "engine.cohort=false", *secrets]
        machines.fedrlvr(SERVER, "run", "exp.toml", *one_by_one)

    claims, logs = Claims(), {clinic: site_log(work / clinic) for clinic in CLIENTS}
    result = {
        "command": f"scripts/bench federation --rounds {chosen.rounds} --seed {chosen.seed}"
        + (" --loopback" if chosen.loopback else ""),
        "rounds": chosen.rounds,
        "seed": chosen.seed,
        "namespaces": machines.why_not is None,
        "why_not": machines.why_not,
        "adapter": {kind: compare(work / "federated", work / kind) for kind in ("local", "one-by-one")},
        "wall": round_seconds(work / "federated"),
        "training": training_seconds(work / "federated"),
        "floors": floors,
        "others": busy,
        "loads": {clinic: sum(line.startswith("loaded ") for line in logs[clinic]) for clinic in CLIENTS},
        "last_lines": {clinic: logs[clinic][-1] for clinic in CLIENTS},
        "bytes": traffic(work / "federated"),
        "ports": ports,
        "packets": seen(captured, machines.names(), machines.address(SERVER), PORT) if captured is not None else None,
        "packets_lost": packets.lost if packets else None,
        "left": left,
    }
    write(result, claims, chosen.out)
    claims.end()


@contextmanager
def running_superlink(machines: Machines) -> Iterator[None]:
    """The SuperLink, while this lasts."""
    machines.start(SERVER, "superlink", "run", "superlink")
    machines.until_open(SERVER, PORT)
    try:
        yield
    finally:
        machines.stop(SERVER)


if __name__ == "__main__":
    main()
