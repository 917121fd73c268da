"""`fedrlvr prompts`: several prompts side by side on a few problems, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedrlvr.cli.options import ConfigPath, Overrides
from fedrlvr.interrupts import interruptible
from fedrlvr.output import echo
from fedrlvr.zoo import embedded_config


def prompts(
    config: ConfigPath = None,
    prompt: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Tables of prompt settings in TOML, a candidate each; may be repeated."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="PROMPT.KEY=VALUE,VALUE", help="A prompt setting and its values; may be repeated."),
    ] = None,
    overrides: Overrides = None,
    problems: Annotated[int, typer.Option(min=1, help="Number of problems that each candidate is tried on.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each problem.")] = 4,
    split: Annotated[
        Literal["validation", "training", "test"] | None,
        typer.Option(help="Problems to try on; by default validation problems if there are any, else training ones."),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Show long prompts and responses whole.")] = False,
) -> None:
    """Try several prompts on the same problems: pass@1, readable answers, lengths, and some responses. Nothing is
    trained or written.

    Without --prompt and --vary a built-in set is tried: without or with the chat template, with the instruction to box
    the answer, and few-shot.
    """
    from fedrlvr.simulation.prompt_plan import candidates

    tried = candidates(config or embedded_config(), overrides or (), vary or (), prompt or ())
    with interruptible("nothing was changed; give the same command again"):
        from fedrlvr.reporting.prompt_table import show_trials
        from fedrlvr.simulation.prompts import PromptTrials

        trials = PromptTrials(tried[0].config, split, problems, samples)
        title = f"{len(trials.problems)} {trials.split} problems x {samples} responses, with 95 % intervals"
        show_trials(list(trials.run(tried)), title, whole=whole)
    if trials.split == "test":
        echo("These are the held-out problems: a prompt that is chosen by them makes their later score too high.")
