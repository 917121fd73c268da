"""The ServerApp: what Flower starts at the SuperLink for a run. Everything is in run.py."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the run that the run config names.

    Raises:
        FedrlvrError: the run has failed; Flower marks it so, and shows the text to whoever follows its log.
    """
    from fedrlvr.deployment.superlink.run import serve
    from fedrlvr.errors import FedrlvrError

    try:
        result = serve(grid, context.run_config)
    except FedrlvrError as error:
        print(f"error: {error}", flush=True)
        raise
    print(f"all rounds are done: {result.directory}", flush=True)
