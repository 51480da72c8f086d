"""TensorBoard for a run's logs: a process on the loopback address, not available on a shared page."""

import atexit
import importlib.util
import socket
import subprocess
import sys
import threading
from pathlib import Path

from core.record.problems import ProblemsError
from core.record.workspace import PROJECT

HOST = "127.0.0.1"


class TensorBoard:
    """At most one TensorBoard process, which is restarted for another log folder and ends with the page."""

    def __init__(self, offered: bool):
        self.offered = offered and importlib.util.find_spec("tensorboard") is not None
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._folder: Path | None = None
        self.address = ""
        self.run = ""

    def open(self, run: str, logs: Path) -> str:
        """Start TensorBoard for the log folder `logs` of run `run` and return its URL, which answers after a few seconds.

        Raises ProblemsError on a shared page, and if the folder has no TensorBoard files.
        """
        if not self.offered:
            what = "TensorBoard can only be opened on the machine itself"
            raise ProblemsError.one(what, "TensorBoard", "open the page there", "tensorboard.shared-page")
        if not logs.is_dir() or not any(logs.rglob("events.out.*")):
            fix = "set 'Also write' to TensorBoard files before the next run"
            raise ProblemsError.one("This run has no TensorBoard files", str(logs), fix, "tensorboard.no-files")
        with self._lock:
            if self._folder != logs or self._process is None or self._process.poll() is not None:
                self._stop()
                self._start(logs)
            self.run = run
            return self.address

    def _start(self, logs: Path) -> None:
        """Start a process for the log folder `logs` on a free port, and set its address."""
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        options = {"logdir": logs.resolve(), "host": HOST, "port": port, "load_fast": "false"}
        flags = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "tabs.monitor.tensorboard_server", *flags]
        self._process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._folder, self.address = logs, f"http://{HOST}:{port}/"
        atexit.register(self.close)

    @property
    def ready(self) -> bool:
        """Whether the process answers."""
        if not self.address or self._process is None or self._process.poll() is not None:
            return False
        try:
            with socket.create_connection((HOST, int(self.address.rsplit(":", 1)[1].strip("/"))), timeout=0.2):
                return True
        except OSError:
            return False

    def close(self) -> None:
        """Stop the process."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        """End the process, if any; kill it after 5 seconds."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process, self.address = None, ""
