"""What the machine is asked, and how its answers are read."""

import http.server
import threading
import time

import pytest

from core.setup import environment
from core.setup.environment import index_responds
from core.setup.facts import interpreter_machine, machine_facts, parse_nvidia_smi, query_nvidia_smi


@pytest.mark.parametrize(
    ("text", "driver", "compute"),
    [
        ("580.65.06, 8.6\n", "580.65.06", ("8.6",)),
        ("550.54.15, 8.9\n550.54.15, 6.1\n", "550.54.15", ("8.9", "6.1")),
        ("470.256.02\n", "470.256.02", ()),
        ("535.1, [N/A]\n", "535.1", ()),
        ("", None, ()),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", None, ()),
        ("No devices were found\n", None, ()),
    ],
)
def test_nvidia_smi_is_read_as_it_prints(text, driver, compute):
    assert parse_nvidia_smi(text) == (driver, compute)


def program(tmp_path, body):
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_driver_that_does_not_know_compute_cap_is_asked_without(tmp_path):
    smi = program(
        tmp_path, 'case "$1" in *compute_cap*) echo "Field is not valid"; exit 2;; *) echo "470.256.02";; esac'
    )
    assert query_nvidia_smi(smi) == ("470.256.02", ())


def test_a_driver_that_fails_counts_as_none(tmp_path):
    assert query_nvidia_smi(program(tmp_path, "exit 9")) == (None, ())
    assert query_nvidia_smi(None) == (None, ())


def test_the_facts_of_this_machine_name_its_system():
    facts = machine_facts()
    assert facts.system in ("Linux", "Windows", "Darwin")
    assert facts.machine == interpreter_machine(facts.system)
    assert (facts.glibc != "") == (facts.system == "Linux")


class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def index():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_index_answers_when_it_lists_torch(index):
    assert index_responds(f"{index}/cpu")
    assert not index_responds(f"{index}/nothing")


def test_an_index_that_accepts_but_stays_silent_is_given_up_in_time(monkeypatch):
    import socket

    monkeypatch.setattr(environment, "INDEX_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert not index_responds(f"http://127.0.0.1:{silent.getsockname()[1]}/cpu")
        assert time.monotonic() - started < 30  # a loaded machine; the limit is 0.3


def test_an_address_that_nobody_serves_does_not_answer():
    assert not index_responds("http://127.0.0.1:9/cpu")
    assert not index_responds("not an address")
