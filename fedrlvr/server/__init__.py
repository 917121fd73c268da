"""The server of a federation: rounds, exchanges, aggregation, checkpoints."""
