"""A site's own rule, which decides about a reply by its card: a function of the site's, run in a child process.

The function takes the card as a dictionary (`Card`) and returns True (the reply may leave), False (it stays) or None (a
person decides, where egress.approve asks for one), or such a value together with a reason. It is the site's own code
and runs with the site's rights, but it may hang or crash, and then the reply stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedrlvr.errors import GradingError
from fedrlvr.privacy.card import Card
from fedrlvr.tasks.sandbox import ChildEnded, KillableChild

_MEMORY_BYTES = 4 << 30


class SiteRule(KillableChild):
    """The child process of a site's rule.

    path: `package.module:function`. directory: of site.toml, where modules are looked for after the import path.
    limit_s: seconds that one call may take.
    """

    def __init__(self, path: str, directory: Path, limit_s: float) -> None:
        setup = {"serves": "rule", "path": path, "directories": (*sys.path, str(directory))}
        super().__init__(setup, limit_s=limit_s, memory_bytes=_MEMORY_BYTES, what=f"the rule {path}")
        self.path = path

    def decide(self, card: Card) -> tuple[bool | None, str]:
        """The rule's decision about a reply, and its reason. A rule that fails denies."""
        try:
            reply = self.request({"card": card.model_dump(mode="json")})
        except TimeoutError:
            return False, f"the rule took longer than {self.limit_s:g} s (egress.rule_seconds)"
        except ChildEnded:
            return False, "the rule ended its process twice"
        except GradingError as error:
            return False, str(error)
        if "raised" in reply:
            return False, f"the rule raised {reply['raised']} ({reply.get('at', '')})"
        if "returned" in reply:
            return False, f"the rule returned {reply['returned']}, and not True, False, None or such a value and a text"
        return reply["allow"], str(reply["reason"])

    def failure(self, reason: str) -> GradingError:
        """The error of a rule that cannot be served."""
        return GradingError(f"egress.rule = {self._setup['path']!r}: {reason}.")
