"""Every setting of a configuration file, as docs/settings.md lists it: its type, default, sentence and first version.

All of it comes from the sections themselves, except for the version, which `_SINCE` states. A new setting needs one
word there.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from fedrlvr.config.sections import OnlyWith, Section

_SINCE = """
0.1.0 run name seed directory keep_checkpoints
0.1.0 model name dtype device gradient_checkpointing
0.1.0 lora rank alpha targets
0.1.0 data name path options train_size public_size test_size max_prompt_tokens
0.1.0 partition type alpha
0.1.0 federation clients fraction arm
0.1.0 sampling group_size max_new_tokens temperature top_p top_k
0.1.0 train rounds local_steps problems_per_step loss scale_by_std clip_low clip_high kl_beta updates_per_batch
0.1.0 train proximal_mu learning_rate schedule warmup_steps weight_decay beta1 beta2 max_grad_norm optimizer_state
0.1.0 supervision type
0.1.0 coordination type
0.1.0 aggregation type weights
0.1.0 evaluate every samples temperature
0.1.0 engine micro_batch_tokens decode_rows threads
0.2.0 engine logits_at_once autocast decode_cache cohort skip_zero_advantage prefill_once shared_cache shared_prefix
0.2.0 engine compact sampled_logps response_logits by_length
0.3.0 coordination swap ratio gamma exchanges public_problems public_steps pool_size
0.3.0 federation quorum
0.3.0 aggregation largest_change fgrpo_gain fgrpo_baseline fgrpo_shape fgrpo_temperature fgrpo_beta fgrpo_window
0.3.0 aggregation fgrpo_floor
0.4.0 aggregation precision robust robust_clip robust_trim robust_hostile
0.5.0 run ledgers
0.5.0 supervision audit budget budget_total budget_per_day labels_from trusted probe_learning_rate probe_steps
0.5.0 supervision share_probes rest
0.6.0 federation deadline task
0.6.0 site name superlink root_certificates key insecure port idle_minutes keep_runs tasks models
0.6.0 machine device dtype gradient_checkpointing
0.6.0 limits message_types rounds local_steps problems_per_step group_size max_new_tokens tokens_per_message
0.6.0 limits public_problems public_steps updates_per_batch evaluate_samples lora_rank change_rank supervision
0.6.0 limits labels_from label_share labels audit share_probes least_clients source_names least_problems
0.7.0 data unreachable_golds arithmetic
0.7.0 train unfinished
0.7.0 aggregation change_bound
0.8.0 supervision min_reliability
0.8.0 aggregation server_learning_rate server_optimizer server_momentum server_beta1 server_beta2 server_epsilon
0.8.0 aggregation server_agreement
0.8.0 model adapter
0.8.0 run started_in secrets
0.8.0 limits messages_per_day evaluations_per_day own_adapter prompt_filter learning_rate probe_learning_rate
0.8.0 limits beta1 beta2 weight_decay max_grad_norm clip_low clip_high scale_free kl_beta proximal_mu
0.9.0 run verdict
0.9.0 data validation_size train_on_public
0.9.0 evaluate split
0.9.0 run responses
0.9.0 site responses
0.9.0 personal type steps learning_rate
0.9.0 limits personal
0.8.0 limits temperature top_p lora_scale factor_value update_norm least_group_size least_new_tokens
0.8.0 limits least_learned least_tokens least_positions largest_ratio problem_share least_scored round_numbers
0.8.0 coordination pool_tail pool_length
0.9.0 federation excluded deviations
0.9.0 deviations wrong_labels free_rider
0.10.0 deviations template
0.11.0 run alone_rates
0.11.0 run trackers mlflow_uri
0.10.0 prompt instruction system template examples shots chat template_args prefill stop
0.10.0 limits chat template_args instruction system template examples shots prefill stop
0.10.0 data rewards
0.10.0 deviations rewards
0.10.0 train dynamic_sampling
0.10.0 limits dynamic_sampling
0.10.0 evaluate also
0.10.0 also text text_tokens task
0.11.0 aggregation precision_down
0.11.0 egress approve wait rule rule_seconds check_responses words digits canaries dropped_responses
0.10.0 rewards use weight time_limit memory
0.11.0 rewards name
0.10.0 supervision responses
0.11.0 aggregation fgrpo_gain_from fgrpo_shrink
0.11.0 deviations unsolvable flipped_rewards contradicts
0.12.0 site message_minutes changed_data
0.11.0 supervision spend score selection min_auc vote_free_share min_similarity
0.12.0 engine sampler vllm_python vllm_address vllm_adapters vllm_max_loras vllm_arguments
0.12.0 train ratio_cap
0.12.0 privacy unit epsilon delta clip unnoised_scores
0.12.0 limits epsilon delta unnoised_scores
0.12.0 aggregation keep_adapters
0.12.0 federation withdrawn
0.10.0 sft responses rounds local_steps problems_per_step learning_rate
"""
SINCE = {
    f"{section}.{name}": version
    for version, section, *names in (line.split() for line in _SINCE.split("\n") if line)
    for name in names
}
"""The version in which a setting first had its name, by `section.setting`; `site` is the top of site.toml."""


@dataclass(frozen=True)
class SettingRow:
    """A setting as the reference shows it.

    default: as TOML, or "required" or "unset". sentence: with the settings that it needs to have an effect.
    """

    section: str
    name: str
    type: str
    default: str
    sentence: str
    since: str


def members(section: Any) -> list[type[Section]]:
    """The classes of a section: one, or one for each `type` that the section can have."""
    return list(getattr(section, "__args__", (section,)))


def summary(member: type[Section]) -> str:
    """The first paragraph of a section's docstring, on one line."""
    return " ".join(inspect.cleandoc(member.__doc__ or "").split("\n\n")[0].split())


def types(member: type[Section]) -> list[str]:
    """The values of `type` for which a section's class is taken."""
    schema = _schema(member, "type")
    return [str(value) for value in schema.get("enum", [schema.get("const")])]


def describe(section: str, field: FieldInfo) -> Iterator[SettingRow]:
    """Every setting of a section, but not the sections in it.

    section: its name. field: its class or classes, of which each setting comes once; with several classes also the
        default `type` and what it is.

    Raises:
        KeyError: a setting that is missing in `_SINCE`.
    """
    classes = members(field.annotation)
    for name in dict.fromkeys(name for member in classes for name in member.model_fields):
        holders = [member for member in classes if name in member.model_fields]
        info = holders[-1].model_fields[name]
        if isinstance(info.default, Section):
            continue
        schema, default, sentence = _schema(holders[-1], name), _default(info), info.description
        marks = [f"`{mark.setting}` = {_values(mark.values)}" for mark in info.metadata if isinstance(mark, OnlyWith)]
        if name == "type" and len(classes) > 1:
            schema = {"enum": [value for member in classes for value in types(member)]}
            default, sentence = json.dumps(field.default.type), field.description
        elif len(holders) < len(classes) and not any(mark.startswith("`type`") for mark in marks):
            marks.insert(0, f"`type` = {_values([value for member in holders for value in types(member)])}")
        sentence = " ".join([*(sentence or "").split(), *([f"Only with {' and '.join(marks)}."] if marks else [])])
        yield SettingRow(section, name, _type_text(schema), default, sentence, SINCE[f"{section}.{name}"])


def type_of(member: type[Section], name: str) -> str:
    """The values that a setting takes, in words, such as `whole number or list of text`."""
    return _type_text(_schema(member, name))


def _schema(member: type[Section], name: str) -> dict[str, Any]:
    schema: dict[str, Any] = member.model_json_schema()["properties"][name]
    return schema


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    return "unset" if default is None else json.dumps(default, default=str)


def _values(values: Iterable[Any]) -> str:
    """`a`, `b` or `c`."""
    texts = (str(value).lower() if isinstance(value, bool) else value for value in values)
    *others, last = ("unset" if text is None else f"`{text}`" for text in texts)
    return f"{', '.join(others)} or {last}" if others else last


def _type_text(schema: dict[str, Any]) -> str:
    """A JSON schema in words: `whole number, 1 to 64`."""
    if "anyOf" in schema:
        texts = [_type_text(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return (", or " if any("," in text for text in texts) else " or ").join(texts)
    if "enum" in schema or "const" in schema:
        return _values(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ", ".join(filter(None, ("whole number" if kind == "integer" else "number", _range_text(schema))))
    if kind == "array" and "prefixItems" in schema:
        return "[least, largest]"
    if kind == "array":
        return f"list of {_type_text(schema['items'])}"
    names = {"boolean": "true or false", "string": "path" if schema.get("format") == "path" else "text"}
    return names.get(str(kind), "table")


def _range_text(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{low} to {high}"
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    texts = (("at least", low), ("above", above), ("at most", high), ("below", below))
    return ", ".join(f"{word} {value}" for word, value in texts if value is not None)
