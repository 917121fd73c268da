"""Codes of the errors that a client sends in a reply's place."""

from __future__ import annotations

REFUSED, FAILED, WITHHELD = 100, 101, 102
"""A request is beyond the client's limits or cannot be used; the client failed; the client has trained on too little
for a reply to leave, and the server treats it as not asked in this round."""
