"""The section about differential privacy, and what a request says of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedrlvr.config.sections import OnlyWith, Section

PRIVATE = OnlyWith("unit", ("site",))


class Noise(Section):
    """Clip and noise that a request asks of a client's change.

    clip: largest L2 norm of the change, all factors that are sent together. noise: standard deviation as a multiple of
    the clip.
    """

    clip: float = Field(gt=0)
    noise: float = Field(gt=0)

    def check_alone(self, request: Any) -> None:
        """Refuse a request for training whose reply would hold more than an adapter.

        Raises:
            ValueError: responses, probes or numbers would leave too; the text names the setting.
        """
        others = {
            "coordination": request.coordination is not None,
            "supervision.share_probes": request.supervision.shares_probes,
            "supervision.audit": request.supervision.audits,
            "personal": request.personal or request.keeps is not None or request.own_adapter,
        }
        for name, asked in others.items():
            if asked:
                raise ValueError(f"privacy does not go with {name}, whose results no noise protects")


class PrivacyConfig(Section):
    """Differential privacy of the adapters that leave the clients (docs/differential-privacy.md)."""

    unit: Literal["none", "site"] = "none"
    """Unit of privacy. With `site`, each client clips its change of the adapter and adds Gaussian noise before it is
    sent, so that all of its training problems together are protected, against the server too. Its numbers and scores
    then stay at the client. `none` adds no noise."""
    epsilon: Annotated[float | None, PRIVATE] = Field(None, ge=1e-3, le=1e6)
    """Epsilon of all rounds of a run together, for a client that trains in each. The noise follows from it. A smaller
    value protects more; 1 to 8 are usual, and need more than 10,000 sites to be of use (docs/measurements/dp.md)."""
    delta: Annotated[float, PRIVATE] = Field(1e-5, gt=0, lt=1)
    """Probability with which the bound by epsilon may fail. Choose far less than one over the number of clients."""
    clip: Annotated[float, PRIVATE] = Field(1.0, gt=0)
    """Largest L2 norm of a client's change in one round, C, over all factors that are sent; a larger change is
    shortened. The noise is proportional to it. A change by AdamW has at most the norm train.learning_rate x
    train.local_steps x the square root of the number of factors' entries; choose a tenth of that or less."""
    unnoised_scores: Annotated[bool, PRIVATE] = False
    """Whether clients are still asked for scores of their held-out problems, which no noise protects. Turn it on in
    simulations, to see what the noise costs. An organisation with limits.epsilon sends no score, whatever this says."""

    def check(self, config: Any) -> None:
        """Only adapters with noise leave, and each client counts alike."""
        if self.unit == "none":
            return
        stated = f"privacy.unit = {self.unit!r}"
        if self.epsilon is None:
            raise ValueError(f"{stated} needs privacy.epsilon, such as 8.0")
        if config.federation.arm != "federated":
            raise ValueError(f"{stated} has no effect with federation.arm = {config.federation.arm!r}")
        refused = {
            f"coordination.type = {config.coordination.type!r}": (
                config.coordination.type != "none",
                "sends responses, which no noise protects",
            ),
            "supervision.share_probes = true": (
                config.supervision.shares_probes,
                "sends probes, which no noise protects",
            ),
            "supervision.audit = true": (config.supervision.audits, "measures numbers, which stay at the clients"),
            f"supervision.type = {config.supervision.type!r}": (
                config.supervision.type == "demonstrations",
                "is another training, whose privacy loss is not counted",
            ),
            f"personal.type = {config.personal.type!r}": (
                config.personal.type != "none",
                "sends numbers of personal adapters, which no noise protects",
            ),
            f"aggregation.weights = {config.aggregation.weights!r}": (
                config.aggregation.weights != "equal",
                "weighs clients by numbers that stay with them; set aggregation.weights = 'equal'",
            ),
            "run.verdict = true": (
                config.run.verdict and not self.unnoised_scores,
                "compares scores, which stay at the clients; set privacy.unnoised_scores = true in a simulation",
            ),
        }
        for setting, (meets, reason) in refused.items():
            if meets:
                raise ValueError(f"{stated} does not go with {setting}, which {reason}")

    @property
    def withholds_scores(self) -> bool:
        """Whether no client is asked for scores."""
        return self.unit != "none" and not self.unnoised_scores

    def noise(self, rounds: int) -> Noise | None:
        """Clip and noise that each request of a run of so many rounds asks for; None without noise."""
        if self.epsilon is None or self.unit == "none":
            return None
        from fedrlvr.privacy.accountant import noise_for

        return Noise(clip=self.clip, noise=noise_for(self.epsilon, self.delta, rounds))

    def spent(self, rounds: int, done: int) -> dict[str, Any]:
        """The privacy loss of a client that has trained in `done` of the rounds; empty without noise."""
        if (asked := self.noise(rounds)) is None:
            return {}
        from fedrlvr.privacy.accountant import epsilon_of, mu_after

        epsilon = epsilon_of(mu_after(asked.noise, done), self.delta) if done else 0.0
        return {"unit": self.unit, "epsilon": epsilon, "delta": self.delta, "clip": self.clip, "noise": asked.noise}
