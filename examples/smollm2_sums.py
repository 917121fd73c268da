"""The reward of smollm2_sums.toml: what the model writes behind `25+31=` must be the sum and nothing else."""


def is_sum(completion: str, answer: str, **info: object) -> float:
    """1 if the first line of the completion is the answer, else 0."""
    return float(completion.partition("\n")[0].strip() == answer)
