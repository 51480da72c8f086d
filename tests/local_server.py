"""Servers on this machine in place of a hub, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


def model_bytes(content: bytes) -> bytes:
    """A safetensors file of one tensor with these bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}).encode()
    return len(header).to_bytes(8, "little") + header + content


class Answers(BaseHTTPRequestHandler):
    """A handler that prints nothing; its server holds what a test says to it."""

    server: Any

    def log_message(self, *arguments: object) -> None:
        pass

    def send_json(self, answer: object, status: int = 200, **headers: str) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, text)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **facts: Any) -> Iterator[Any]:
    """A server with these attributes, at its `endpoint`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(facts, endpoint=f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def as_hub(monkeypatch: pytest.MonkeyPatch, server: Any) -> None:
    """Ask this server where huggingface_hub would ask the hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
    address = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
