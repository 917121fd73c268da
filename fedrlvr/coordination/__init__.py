"""Seam 2: what clients tell each other besides weights. Pure; a method is one file.

A round of tau local steps is cut into stretches by the exchanges a coordination asks for; with none, clients
exchange adapters only and the round is one stretch.
"""

from fedrlvr.coordination.stretches import stretches

__all__ = ["stretches"]
