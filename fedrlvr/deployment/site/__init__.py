"""An organisation's side of a deployment: its limits, its worker, and what it remembers of a run."""
