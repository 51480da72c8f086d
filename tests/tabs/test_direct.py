"""The page opens whatever proxies and certificates the environment names: it needs no network."""

import os

import httpx
import pytest
from page_server import Served

from tabs.server.direct import without_proxies

UNUSABLE = {
    "ALL_PROXY": "socks5://127.0.0.1:9",  # no package for SOCKS is installed
    "NO_PROXY": "localhost,fe80::/10",
    "SSL_CERT_FILE": "/missing/certificates.pem",
}


@pytest.fixture
def unusable(monkeypatch):
    for name, value in UNUSABLE.items():
        monkeypatch.setenv(name, value)


def test_gradios_clients_are_created_and_the_environment_stays(unusable):
    with pytest.raises(Exception):  # noqa: B017
        httpx.Client()
    with without_proxies():
        httpx.Client().close()
    assert {name: os.environ[name] for name in UNUSABLE} == UNUSABLE


def test_a_page_opens_behind_a_proxy_that_cannot_reach_it(tmp_path, unusable, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    page = Served(tmp_path)
    try:
        assert httpx.get(page.url, trust_env=False).status_code == 200
    finally:
        page.close()
