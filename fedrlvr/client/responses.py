"""The few responses of a round that each client writes to its own responses.jsonl.

They are of the round's first local step, which the policy that the round began with has sampled: the first response to
each problem, then the second to each, up to the number that the client's log takes. They are read and never changed,
and no random number is drawn for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedrlvr.client.request import ClientRequest
from fedrlvr.client.supervisor import Supervising
from fedrlvr.reporting.responses import LoggedResponse
from fedrlvr.rl import Group, Response, verified
from fedrlvr.tasks.extraction import extract


class ResponseNotes:
    """Notes of the responses that the requests of one batch are to write.

    requests: by row of the cohort.
    """

    def __init__(self, requests: Mapping[str, ClientRequest]) -> None:
        self._requests = {
            row: request for row, request in requests.items() if request.client.log and request.client.log.count
        }
        self._texts: dict[str, list[list[str]]] = {}
        self._noted: dict[str, list[LoggedResponse]] = {}

    def sampled(self, drawn: Mapping[str, Sequence[Sequence[Response]]]) -> None:
        """Keep the texts of a round's first step as they were sampled, before any is withheld from grading."""
        self._texts = {row: [[response.text for response in group] for group in drawn[row]] for row in self._requests}

    def supervised(self, row: str, groups: Sequence[Group], supervising: Supervising) -> None:
        """Note a client's responses of that step, with their rewards."""
        if row not in self._texts:
            return
        request, texts = self._requests[row], self._texts.pop(row)
        assert request.client.log is not None
        count = min(request.client.log.count, sum(map(len, texts)))
        places = [(i % len(groups), i // len(groups)) for i in range(count)]
        self._noted[row] = [
            _noted(request, groups[place], number, texts[place][number], supervising, row, place)
            for place, number in places
        ]

    def write(self) -> None:
        """Write what was noted to each client's file; called once the replies are made."""
        for row, responses in self._noted.items():
            request = self._requests[row]
            assert request.client.log is not None
            request.client.log.write(request.client.name, request.asked.round, responses)


def _noted(
    request: ClientRequest, group: Group, number: int, text: str, supervising: Supervising, row: str, place: int
) -> LoggedResponse:
    response, known = group.responses[number], supervising.known(row, place, group)
    return LoggedResponse(
        round=request.asked.round,
        problem=group.problem.id,
        source=group.problem.source,
        prompt=request.data.prompts.text(group.problem),
        text=text,
        answer=extract(text, group.problem.kind),
        gold=known.label,
        reward=group.rewards[number],
        grade=None if known.rewards is None else verified(known.rewards[number]),
        fate=known.fate.value,
        finished=response.finished,
        tokens=len(response.token_ids),
        mean_logp=sum(response.logps) / len(response.logps) if response.logps else None,
    )
