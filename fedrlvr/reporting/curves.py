"""The curves that the report and the page of `fedrlvr watch` draw: each number's key, title and form."""

from __future__ import annotations

from fedrlvr.reporting.figures import Curve

CURVES = (
    Curve("reward", "Mean reward in training"),
    Curve("pass@1", "pass@1 in training", percent=True),
    Curve("zero_variance_groups", "Groups whose rewards are all equal", percent=True),
    Curve("problems_redrawn", "Problems drawn again for one whose rewards are all equal"),
    Curve("response_length", "Response length, tokens"),
    Curve("unfinished", "Responses cut at the length limit", percent=True),
    Curve("unreadable", "Responses without a readable answer", percent=True),
    Curve("kl_to_base", "KL to the base model, per token"),
    Curve("ratio_mean", "Policy ratio: mean; maximum dashed", dashed="ratio_max", floor=False),
    Curve("clip_fraction", "Tokens whose ratio is clipped", percent=True),
    Curve("grad_norm", "Gradient norm before clipping"),
    Curve("tokens_sampled", "Tokens sampled; trained dashed", dashed="tokens_trained"),
    Curve("public_pass@1", "Public problems: pass@1 before the swap", percent=True),
    Curve("swapped_in", "Responses swapped in; groups rescued from all-wrong dashed", dashed="rescued"),
    Curve("weight", "Weight of each client's adapter", percent=True),
)
IMITATION_CURVES = (
    Curve("loss", "Cross entropy per token of the responses imitated; of held-out ones dashed", dashed="held_out_loss"),
    *(
        curve
        for curve in CURVES
        if curve.key not in ("zero_variance_groups", "kl_to_base", "ratio_mean", "clip_fraction")
    ),
)
"""Curves of supervised training; those about sampled responses only with `sft.responses = "own"`."""
LABEL_CURVES = (
    Curve("labels_asked", "Labels asked for; used dashed", dashed="labels_used"),
    Curve("labels_total", "Labels in the ledger"),
    Curve("reward", "Reward trained on; true pass@1 dashed", dashed="pass@1", percent=True, both=True),
    Curve("verified_reward", "Mean true reward of labelled problems"),
    Curve("majority_right", "Labelled problems whose majority is right", percent=True),
    Curve("audit_majority_right", "All problems whose majority is right", percent=True),
    Curve("audit_reliable_right", "Trusted majorities that are right", percent=True),
    Curve("audit_gap_correlation", "Correlation of the score S with a label's true value", floor=False),
    Curve("probe_auc", "Held-out AUC of the probes", floor=False),
    Curve("reliability_loss", "Probes' loss: of P1; of the correction dashed", dashed="correction_loss"),
)
"""Curves about labels; those that need every answer (true pass@1, all and trusted majorities, S) only with audit."""
STEP_CURVE = Curve("learning_rate", "Applied learning rate; mean cosine of two clients' changes dashed", floor=False)
FATE_TITLES = (
    ("asked about", 1),
    ("labelled before", 3),
    ("trusted vote", 2),
    ("masked", None),
)
"""Treatments of a problem, in the order of `scores.FATES`, and the numbers of their colours."""
