"""The approval page: a person sees the card of each reply that waits, and approves or denies it.

    GET  /api/approvals   {"client", "approve", "waiting": [card with "id", "rows" and "until"]}
    POST /api/approvals   {"id", "digest", "allow", "name"} -> {"decided": true}

The digest in a decision is that of the card on display, so a decision never meets another reply.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Annotated, Any

from fastapi import FastAPI

from fedrlvr.labels.desk.app import PAGE
from fedrlvr.pages.server import Body, guarded_app, page_files, sent_body
from fedrlvr.privacy.approvals import Approvals
from fedrlvr.privacy.card import Approve, Card

APPROVAL_FILES = page_files(PAGE, "approve.html", scripts=("common.js", "approve.js"))


class DecisionBody(Body):
    """A person's decision about the reply of a card that was on display."""

    id: str
    digest: str
    allow: bool
    name: str


def make_approval_desk(
    approvals: Approvals, token: str, client: str, approve: Approve, *, names: Collection[str] = ()
) -> FastAPI:
    """The approval page of a site.

    token: what requests must bring. client: name of the site, approve: its setting egress.approve, for the page.
    names: host names it may be asked for by, besides loopback's.

    Raises:
        ValueError: the token is empty.
    """
    app = guarded_app(token, names, APPROVAL_FILES)

    @app.get("/api/approvals")
    def waiting() -> dict[str, Any]:
        return {"client": client, "approve": approve, "waiting": [_shown(card) for card in approvals.waiting()]}

    @app.post("/api/approvals")
    def decide(word: Annotated[DecisionBody, sent_body(DecisionBody)]) -> dict[str, bool]:
        approvals.decide(word.id, allow=word.allow, by=word.name, digest=word.digest)
        return {"decided": True}

    return app


def _shown(card: Card) -> dict[str, Any]:
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(card.expires_at))
    return {**card.model_dump(mode="json"), "id": card.id, "rows": list(card.rows()), "until": until}
