"""The server's side of a deployment: a run over Flower's SuperLink."""
