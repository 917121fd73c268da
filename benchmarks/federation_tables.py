"""The measurements of `federation.py`: read from runs, logs and packets, held against the claims, written down."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, today
from benchmarks.netns import HUB
from benchmarks.packets import Packet, connections
from benchmarks.tables import table

TOLERANCE = 1e-4
"""Largest difference of any number of the adapter, from the local engine's with one client after another."""
RELATIVE = 1e-3
"""Norm of the difference by the norm, from its adapter with all clients in one batch. Single numbers may differ by as
much as a step of AdamW where a gradient is nothing but rounding, since it divides by the gradient's own size."""
MORE_S = 2.0
"""Seconds of a round beyond its training and Flower's floor."""


# What is read.


def compare(run: Path, reference: Path) -> dict[str, Any]:
    """How far the adapters and the metrics of two run directories are apart.

    numbers: by name, the largest difference in any round and client; of seconds and bytes nothing is said.
    """
    from safetensors.torch import load_file

    from fedrlvr.server.metrics_log import read_metrics

    pair = [load_file(directory / "adapter" / "adapter_model.safetensors") for directory in (run, reference)]
    if set(pair[0]) != set(pair[1]):
        raise SystemExit(f"The adapters in {run} and {reference} do not have the same tensors.")
    difference = max(float((pair[0][name] - pair[1][name]).abs().max()) for name in pair[0])
    largest = max(float(tensor.abs().max()) for tensor in pair[1].values())
    moved = math.sqrt(sum(float((pair[0][name] - pair[1][name]).square().sum()) for name in pair[0]))
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in pair[1].values()))
    numbers: dict[str, float] = {}
    scores = 0
    for record, other in zip(read_metrics(run), read_metrics(reference), strict=True):
        for client in record["clients"]:
            a, b = record["clients"][client], other["clients"][client]
            for name in (set(a) | set(b)) - {n for n in (*a, *b) if n.startswith(("seconds", "bytes"))}:
                apart = 0.0 if a.get(name) == b.get(name) else math.inf
                if apart and None not in (a.get(name), b.get(name)):
                    apart = abs(a[name] - b[name])
                numbers[name] = max(numbers.get(name, 0.0), apart)
        scores += record.get("evaluate") != other.get("evaluate")
    return {
        "largest_difference": difference,
        "largest_number": largest,
        "relative": moved / norm,
        "numbers": dict(sorted(numbers.items())),
        "rounds_with_other_scores": scores,
    }


def round_seconds(run: Path) -> list[float]:
    """Wall seconds of the rounds from the first: from one round's checkpoint to the next's."""
    times = [path.stat().st_mtime for path in sorted((run / "checkpoints").glob("round-*"))]
    return [after - before for before, after in itertools.pairwise(times)]


def training_seconds(run: Path) -> list[float]:
    """Of the rounds from the first, the seconds that the slowest client sampled, graded and trained, and evaluated."""
    from fedrlvr.server.metrics_log import read_metrics

    seconds = []
    for record in read_metrics(run)[1:]:
        evaluating = [client.get("seconds_evaluate", 0.0) for client in record["clients"].values()]
        training = [
            sum(value for name, value in client.items() if name.startswith("seconds_") and name != "seconds_evaluate")
            for client in record["clients"].values()
        ]
        seconds.append(max(training) + max(evaluating))
    return seconds


def traffic(run: Path) -> dict[str, dict[str, float]]:
    """Bytes of messages a round, up from and down to each client; the mean of the rounds from the first."""
    from fedrlvr.server.metrics_log import read_metrics

    records = read_metrics(run)[1:]
    return {
        client: {
            way: statistics.fmean(record["clients"][client][f"bytes_{way}"] for record in records)
            for way in ("up", "down")
        }
        for client in records[0]["clients"]
    }


def site_log(site: Path) -> list[str]:
    """A site's log without the times."""
    return [line.split(" ", 1)[1] for line in (site / "state" / "site.log").read_text("utf-8").splitlines()]


def seen(packets: Counter[Packet], names: Mapping[str, str], server: str, port: int) -> dict[str, Any]:
    """Every connection and everything else that was seen, and what of it has no business there.

    names: of hosts by address; server: the SuperLink's address, and its port.
    """

    def told(address: str) -> str:
        return names.get(address, address)

    rows: Counter[tuple[str, ...]] = Counter()
    strangers = set()
    for packet, count in packets.items():
        ends = {packet.source, packet.destination}
        if packet.device == "lo":
            fine = packet.protocol == "tcp"
        elif packet.protocol == "tcp":
            back = packet.source == server and packet.source_port == port
            fine = ends <= set(names) and (back or (packet.destination == server and packet.port == port))
        else:
            fine = packet.protocol == "arp" and ends <= set(names)
        line = f"{packet.where}, {packet.device}: {told(packet.source)} to {told(packet.destination)}"
        if not fine:
            strangers.add(f"{line}, {packet.protocol} {packet.port or ''}".rstrip())
        if packet.protocol != "tcp":
            rows[packet.where, packet.device, told(packet.source), told(packet.destination), packet.protocol] += count
    opened = Counter(
        {
            connection: sum(n for p, n in packets.items() if p.opening and _same(connection, p))
            for connection in connections(packets)
        }
    )
    return {
        "packets": sum(packets.values()),
        "connections": [
            [c.where, c.device, told(c.source), told(c.destination), c.port, n] for c, n in sorted(opened.items())
        ],
        "others": [[*row, n] for row, n in sorted(rows.items())],
        "strangers": sorted(strangers),
    }


def _same(connection: Sequence[Any], packet: Packet) -> bool:
    return tuple(connection) == (packet.where, packet.device, packet.source, packet.destination, packet.port)


# What is claimed.


class Claims:
    """Sentences that must be true."""

    def __init__(self) -> None:
        self.said: list[tuple[bool, str]] = []

    def say(self, true: bool, sentence: str) -> None:
        """Note one, and show it."""
        self.said.append((true, sentence))
        print(f"{'holds' if true else 'FAILS'}  {sentence}", flush=True)

    def end(self) -> None:
        """
        Raises:
            SystemExit: one of them is not.
        """
        if failed := sum(not true for true, _ in self.said):
            sys.exit(f"{failed} of {len(self.said)} claims do not hold.")


def check(result: Mapping[str, Any], claims: Claims) -> None:
    """Hold what was measured against what is claimed."""
    same, batch = result["adapter"]["one-by-one"], result["adapter"]["local"]
    claims.say(
        same["largest_difference"] <= TOLERANCE,
        f"The adapter is the local engine's where that too takes one client after another: no number differs by more "
        f"than {same['largest_difference']:.1g} (tolerance {TOLERANCE:.0e}; the largest number is "
        f"{same['largest_number']:.2g}).",
    )
    claims.say(
        batch["relative"] <= RELATIVE,
        f"Against the local engine as it comes, whose one batch of all clients rounds sums otherwise, the adapters lie "
        f"{batch['relative']:.1e} of their norm apart (tolerance {RELATIVE:.0e}), no number more than "
        f"{batch['largest_difference']:.1e}.",
    )
    for comparison, engine in ((same, "one after another"), (batch, "in one batch")):
        counted = {name: apart for name, apart in comparison["numbers"].items() if name in COUNTED}
        other = sorted(name for name, apart in counted.items() if apart)
        claims.say(
            len(counted) == len(COUNTED) and not other,
            f"Clients {engine}: {', '.join(COUNTED)}, which leave an organisation unrounded, are equal for every "
            "client in every round" + (f"; but not {', '.join(other)}." if other else "."),
        )
    beyond = statistics.fmean(overheads(result))
    floor = statistics.fmean(result["floors"][HARDER])
    claims.say(
        beyond <= floor + MORE_S,
        f"A round takes {beyond:.2f} s beyond its training, {beyond - floor:+.2f} s against an app that does nothing "
        f"({HARDER}); at most {MORE_S:+.0f} s is the aim.",
    )
    loads = result["loads"]
    counts = ", ".join(f"{client} {n}" for client, n in loads.items())
    claims.say(set(loads.values()) == {1}, f"Each organisation has loaded the model once ({counts}).")
    if result["packets"] is not None:
        strangers = result["packets"]["strangers"]
        claims.say(
            not strangers and not result["packets_lost"] and bool(result["packets"]["connections"]),
            f"Of {result['packets']['packets']:,} packets ({result['packets_lost']} missed), each is between a clinic "
            "and the SuperLink's port, or an ARP question between them, or stays on a machine's loopback"
            + (f"; but for these: {'; '.join(strangers)}" if strangers else "")
            + ".",
        )
    left = [*result["left"], *(f"{site}: {line}" for site, line in result["last_lines"].items() if IDLE not in line)]
    claims.say(
        not left,
        "Nothing is left: the workers ended by themselves, and with SuperNodes and SuperLink stopped there is no "
        "process and no open port" + (f"; but {'; '.join(left)}" if left else "."),
    )


IDLE = "the worker ends: nothing was asked for"
"""What a site's log ends with."""
COUNTED = ("num-examples", "swapped_in", "rescued")
"""Metrics that organisations send as they are. All others are rounded before they leave (limits.round_numbers)."""
HARDER = "asking as often as fedrlvr"
"""The floor that the claim is about."""


def overheads(result: Mapping[str, Any]) -> list[float]:
    """Of each round, its seconds less the slowest client's own."""
    return [wall - training for wall, training in zip(result["wall"], result["training"], strict=True)]


# What is written.


def write(result: dict[str, Any], claims: Claims, out: Path) -> None:
    """Write federation.md and federation.json."""
    check(result, claims)
    about = {
        "command": result.pop("command"),
        "date": today(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("fedrlvr", "flwr", "torch")} | {"python": sys.version.split()[0]},
    }
    data = {**about, **result, "claims": [{"holds": true, "claim": sentence} for true, sentence in claims.said]}
    out.mkdir(parents=True, exist_ok=True)
    (out / "federation.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    (out / "federation.md").write_text(page(data), "utf-8")


def page(data: Mapping[str, Any]) -> str:
    """The report."""
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    where = (
        "each in a network namespace of its own"
        if data["namespaces"]
        else f"on loopback ({data['why_not']}), so no packets were captured"
    )
    parts = [
        f"`{data['command']}`, seed {data['seed']}, {data['date']}, {data['machine']}; {versions}. A SuperLink and "
        f"three organisations, {where}, with TLS and keys; the embedded reasoner, PubSwap with one exchange a round, "
        f"{data['rounds']} rounds, one torch thread each.",
        "\n".join(
            f"- {'Holds' if claim['holds'] else '**Does not hold**'}: {claim['claim']}" for claim in data["claims"]
        ),
        "### The adapter, against the local engine's\n\n" + _adapters(data["adapter"]),
        "### Seconds a round\n\n" + _seconds(data),
        "### Bytes of messages a round\n\n"
        + table(
            ["", "up", "down"],
            [[c, f"{b['up']:,.0f}", f"{b['down']:,.0f}"] for c, b in data["bytes"].items()],
        ),
        "### Open ports while it ran\n\n"
        + table(["machine", "ports"], [[host, ", ".join(ports) or "none"] for host, ports in data["ports"].items()]),
    ]
    if data["packets"] is not None:
        parts.append("### What went over the network\n\n" + _packets(data["packets"]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _adapters(adapters: Mapping[str, Any]) -> str:
    names = {"local": "as it comes: all clients in one batch", "one-by-one": "one client after another"}
    rows = []
    for kind, comparison in adapters.items():
        apart = [name for name, value in comparison["numbers"].items() if value]
        rows.append(
            [
                names[kind],
                f"{comparison['largest_difference']:.1e}",
                f"{comparison['relative']:.1e}",
                f"{len(comparison['numbers']) - len(apart)} of {len(comparison['numbers'])}",
                ", ".join(f"{name} {comparison['numbers'][name]:.0e}" for name in apart) or "none",
                str(comparison["rounds_with_other_scores"]),
            ]
        )
    header = ["local engine", "largest difference", "relative (norm)", "equal metrics", "others, by at most"]
    note = (
        "Organisations round most metrics and all scores before they leave, so these differ from the local engine's.\n"
    )
    return table([*header, "rounds with other scores"], rows) + "\n" + note


def _seconds(data: Mapping[str, Any]) -> str:
    rows = [
        _interval("fedrlvr: a round", data["wall"]),
        _interval("of it the slowest client's sampling, grading, training, evaluating", data["training"]),
        _interval("beyond that", overheads(data)),
        *(_interval(f"an app that does nothing, {name}", values) for name, values in data["floors"].items()),
    ]
    note = (
        "Three messages a round to three SuperNodes: query, train, evaluate. Flower looks for replies every 3 s at the "
        "server and for messages every second at a SuperNode; fedrlvr every 0.25 s and 0.2 s. The app that does "
        "nothing was run both ways, on SuperNodes of Flower's own at the same machines, in the same session.\n"
    )
    if None not in data["others"].values():
        busy = ", ".join(f"{cores:.2f} ({name})" for name, cores in data["others"].items())
        note += f"Cores that other programs of this machine kept busy meanwhile: {busy}.\n"
    return table(["", "rounds", "mean", "95 % interval"], rows) + "\n" + note


def _interval(label: str, values: Sequence[float]) -> list[str]:
    from benchmarks.arms import mean_interval

    mean, half = mean_interval(list(values))
    return [label, str(len(values)), f"{mean:.2f}", f"{mean - half:.2f} to {mean + half:.2f}"]


def _packets(packets: Mapping[str, Any]) -> str:
    inner = [row for row in packets["connections"] if row[0] != HUB]
    header = ["machine", "device", "from", "to", "port", "connections opened"]
    text = table(header, [[*map(str, row[:-1]), f"{row[-1]:,}"] for row in inner])
    others: Counter[str] = Counter()
    for where, _, source, to, protocol, count in packets["others"]:
        if where != HUB:
            others[f"{where}: {protocol}" if protocol == "arp" else f"{where}: {protocol} {source} to {to}"] += count
    text += "\nWhat else was sent or came, in packets: "
    text += ", ".join(f"{what} {count}" for what, count in sorted(others.items())) + ".\n"
    outside = {tuple(row[2:5]) for row in packets["connections"] if row[0] == HUB}
    routes = sorted(f"{source} to {to}:{port}" for source, to, port in outside)
    return text + f"\nWhat the switch between them saw: {', '.join(routes)}. IPv6 was off.\n"
