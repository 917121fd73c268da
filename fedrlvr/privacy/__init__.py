"""Approval and record of replies: cards, decisions of people, the decision log, and the check of responses."""
