"""Organisations on their own machines, over Flower: the organisation's side (`site/`) and the server's (`superlink/`).

What is computed is the code of `fedrlvr.client` and `fedrlvr.server`, as on one machine. Here is only what lies
between: who may ask for what, how a message reaches the worker that holds the model, how SuperLink and SuperNode are
started.
"""
