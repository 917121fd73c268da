"""`fedrlvr site audit`: an organisation attacks the federation's adapter with its own problems. Nothing is sent.

The organisation knows its sampling secret, and so the problems that it has drawn. Rounds that it missed count as rounds
that it trained in. The files lie in <state>/audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedrlvr.audit.canaries import Canary
from fedrlvr.audit.run import Audit, AuditSettings, Trained, audit_clients
from fedrlvr.config import Config
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.socket import state_directory
from fedrlvr.deployment.site.verdict import plan
from fedrlvr.errors import CheckpointError
from fedrlvr.files import private_directory
from fedrlvr.server.saved_adapter import load_adapter


def audit_here(
    org: Organisation, experiment: Config, adapter: Path, settings: AuditSettings, canaries: Sequence[Canary]
) -> tuple[Audit, Path]:
    """The audit of the federation's adapter as another site and the public see it, and the directory for its files.

    experiment: the configuration that the server ran. adapter: directory of the adapter.

    Raises:
        ConfigError, LimitError: as `plan`.
        AdapterError: the adapter cannot be read, or is of another model.
        FedrlvrError: as loading, sampling and grading say.
    """
    config, train = plan(org, experiment).runs[0].run.config, experiment.train
    trained = Trained({"site": load_adapter(adapter)}, train.rounds * train.local_steps * train.problems_per_step)
    place = state_directory(org) / "audit"
    try:
        private_directory(place)
    except OSError as error:
        raise CheckpointError(f"{place} cannot be made ({error.strerror}).") from error
    return audit_clients(config, {org.name: trained}, settings, canaries, train.rounds), place
