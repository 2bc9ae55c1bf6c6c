"""How the kernels of executed notebooks are reached, and when they are told to end."""

import asyncio
import os
import tempfile
from contextlib import contextmanager

import zmq
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

PAUSE = 0.1  # seconds


class Patient(AsyncKernelManager):
    """Ends a kernel once it has left its last cell.

    Shutting down begins with an interrupt. A kernel that has replied, but not yet left the cell, logs it as an
    error of a run that succeeded; it needs microseconds, and on a busy machine a time slice.
    """

    async def shutdown_kernel(self, now=False, restart=False):
        """Shut down after a pause; `now` and `restart` as in jupyter_client."""
        await asyncio.sleep(PAUSE)
        await super().shutdown_kernel(now=now, restart=restart)


@contextmanager
def config(sockets=True):
    """Yield papermill's configuration: sockets in a folder of their own, where wanted and possible.

    A kernel that listens on TCP ports sometimes chooses one that another has just taken, and warns that
    anybody on the machine can read along.
    """
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        sockets = sockets and os.name == "posix" and len(os.fsencode(folder)) + 10 < zmq.IPC_PATH_MAX_LEN
        reached = {"transport": "ipc", "ip": f"{folder}/k"} if sockets else {}
        yield Config(KernelManager=reached, NotebookClient={"kernel_manager_class": Patient})
