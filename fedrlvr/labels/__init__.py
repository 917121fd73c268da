"""A client's labels: the ledger on its own disk, and the ways in which people fill it."""
