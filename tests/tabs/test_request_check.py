"""Who gets an answer from the page: requests under its own names, that come from itself or from no browser."""

from __future__ import annotations

import http.client
import json
import re
import socket
from pathlib import Path

import gradio
import pytest
from work_parts import finished

from core.record.problems import ProblemsError
from tabs.server.hosts import Hosts, host_and_port
from tabs.server.limits import Limits
from tabs.server.request_check import RequestCheck, samesite_lax


def ask(served, method: str, path: str, body: bytes | None = None, **headers) -> tuple[int, bytes, dict]:
    """One request with exactly these headers (Host among them)."""
    connection = http.client.HTTPConnection("127.0.0.1", served.blocks.server_port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        headers = {"Host": f"127.0.0.1:{served.blocks.server_port}"} | headers
        for name, value in headers.items():
            for each in value if isinstance(value, list) else [value]:
                connection.putheader(name.replace("_", "-"), each)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): text for name, text in answer.getheaders()}
    finally:
        connection.close()


TICK = json.dumps({"data": [None], "fn_index": 0, "session_hash": "s"}).encode()
JSON = {"Content_Type": "application/json"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST:9", "localhost.", "127.0.0.1:7860"])
def test_the_local_page_answers_under_its_three_names(host):
    assert Hosts().admits(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "localhost@evil.example", "", "0.0.0.0"]
    + [
        "127.0.0.2",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::2]",
        "[::1]evil",
        "192.168.1.7",
        "localhost/",
        "a b",
        "ｌocalhost",
    ],
)
def test_no_other_name_is_answered(served, host):
    assert not Hosts().admits(host)
    assert not Hosts(listens=True).admits(host, "192.168.1.8")
    if host.isascii():
        for path in ("/", "/config", "/gradio_api/app_id", "/assets/x.js", "/atelier/file"):
            assert ask(served, "GET", path, Host=host)[0] in (400, 403), path
        status, content, _ = ask(served, "POST", "/gradio_api/run/predict", TICK, Host=host, **JSON)
        assert status in (400, 403) and b"data" not in content


def test_two_hosts_or_none_are_refused(served):
    own = f"127.0.0.1:{served.blocks.server_port}"
    assert ask(served, "GET", "/", Host=[own, "evil.example"])[0] in (400, 403)
    assert ask(served, "GET", "/", Host=[])[0] in (400, 403)


def test_a_page_in_the_network_answers_where_it_was_reached_and_under_given_names():
    hosts = Hosts(listens=True, named=("atelier.example", "proxy.example:8443"))
    assert hosts.admits("192.168.1.7:7860", "192.168.1.7") and hosts.admits("[fe80::1]:7860", "fe80::1")
    assert hosts.admits("192.168.1.7", "::ffff:192.168.1.7")
    assert hosts.admits(socket.gethostname())
    assert hosts.admits("atelier.example") and hosts.admits("Atelier.Example:81")
    assert hosts.admits("proxy.example:8443") and not hosts.admits("proxy.example:1")
    assert not hosts.admits("192.168.1.8", "192.168.1.7")
    assert not Hosts().admits("192.168.1.7", "192.168.1.7")


def test_a_share_link_answers_under_its_own_host_once_it_is_known():
    address = ""
    hosts = Hosts(share=lambda: address)
    assert not hosts.admits("abc.gradio.live")
    address = "https://abc.gradio.live"
    assert hosts.admits("abc.gradio.live") and not hosts.admits("other.gradio.live")
    assert hosts.is_same_site("https://abc.gradio.live", "127.0.0.1:7860")
    assert not hosts.is_same_site("https://other.gradio.live", "abc.gradio.live")


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://127.0.0.1:7860", "127.0.0.1:7860", True),
        ("http://[::1]:7860", "[::1]:7860", True),
        ("http://localhost", "localhost:80", True),
        ("https://atelier.example", "127.0.0.1:7860", True),  # a proxy that does not hand the name on
        ("https://proxy.example:8443", "127.0.0.1:7860", True),
        ("https://proxy.example", "127.0.0.1:7860", False),
        ("http://127.0.0.1:9999", "127.0.0.1:7860", False),  # another program of this machine
        ("http://localhost:7860", "127.0.0.1:7860", False),
        ("http://evil.example", "127.0.0.1:7860", False),
        ("http://127.0.0.1:7860.evil.example", "127.0.0.1:7860", False),
        ("http://127.0.0.1:7860@evil.example", "127.0.0.1:7860", False),
        ("null", "127.0.0.1:7860", False),
        ("file://", "127.0.0.1:7860", False),
        ("http://[::1", "[::1]:7860", False),
        ("", "127.0.0.1:7860", False),
    ],
)
def test_the_origin_is_the_page_itself(origin, host, own):
    assert Hosts(named=("atelier.example", "proxy.example:8443")).is_same_site(origin, host) is own


def test_other_sites_get_nothing_and_change_nothing(served):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
    sent = {"Content_Type": "multipart/form-data; boundary=x"}
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://127.0.0.1:1"):
        assert ask(served, "POST", "/gradio_api/upload", form, Origin=origin, **sent)[0] == 403
        status, _, headers = ask(
            served, "POST", "/gradio_api/run/predict", TICK, Origin=origin, Content_Type="text/plain"
        )
        assert status == 403 and not any(name.startswith("access-control") for name in headers)
        wanted = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
        status, _, headers = ask(served, "OPTIONS", "/gradio_api/run/predict", Origin=origin, **wanted)
        assert status == 403 and not any(name.startswith("access-control") for name in headers)
        assert ask(served, "GET", "/config", Origin=origin)[0] == 403


def test_a_request_that_a_browser_marks_as_foreign_is_refused_but_a_link_is_followed(served):
    foreign = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
    assert ask(served, "GET", "/config", **foreign)[0] == 403
    assert ask(served, "GET", "/", **foreign | {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"})[0] == 403
    link = foreign | {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    status, _, headers = ask(served, "GET", "/", **link)
    assert status == 200 and headers["x-frame-options"] == "SAMEORIGIN"
    assert ask(served, "POST", "/gradio_api/upload", b"", **link)[0] == 403


def test_the_page_itself_and_programs_without_a_browser_are_answered(served):
    own = f"http://127.0.0.1:{served.blocks.server_port}"
    for headers in ({"Origin": own, "Sec_Fetch_Site": "same-origin"}, {}):
        assert ask(served, "POST", "/gradio_api/run/predict", TICK, **JSON, **headers)[0] == 200
        assert ask(served, "GET", "/config", **headers)[0] == 200


def test_no_address_is_answered_that_the_page_does_not_use(served):
    """Gradio has many more: some fetch other sites, tell tokens or files, log everybody out, or make icons of any size."""
    used = r"/|/(config|login|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/pwa_icon|/(static|assets)/.*"
    used += r"|/gradio_api/(heartbeat/.+|upload|upload_progress|startup-events|app_id)"
    declared = re.findall(r"@(app|router)\.\w+\(\s*[\"']([^\"']+)", Path(gradio.routes.__file__).read_text("utf-8"))
    known = {("/gradio_api" if router == "router" else "") + path for router, path in declared}
    assert len(known) > 70
    for path in known:
        if not re.fullmatch(used, path):
            concrete = re.sub(r"\{[^}]*\}", "1", path)
            assert [ask(served, method, concrete)[0] for method in ("GET", "POST")] == [404, 404], path
    for path in ("/pwa_icon/60000", "/logout?all_session=true", "/gradio_api/run/x", "/gradio_api/file=/etc/passwd"):
        assert ask(served, "GET", path)[0] == 404, path
    for folder in ("assets", "assets/x", "static", "static/img", "atelier"):  # longer than any file's name
        assert ask(served, "GET", f"/{folder}/{'a' * 5000}")[0] == 404, folder
    for path in ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/pwa_icon/192", "/gradio_api/app_id"):
        assert ask(served, "GET", path)[0] == 200, path


def test_a_web_socket_is_closed():
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")], "server": ("127.0.0.1", 1)}
    finished(RequestCheck(None, Hosts(), Limits(), Path(), shared=False)(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_cookies_stay_with_this_site():
    assert (
        samesite_lax(b"a=b; HttpOnly; Path=/; SameSite=none; Secure") == b"a=b; HttpOnly; Path=/; Secure; SameSite=Lax"
    )
    assert samesite_lax(b"a=b; HttpOnly") == b"a=b; HttpOnly; SameSite=Lax"


@pytest.mark.parametrize("text", ["::1", "a:b", "a:1:2", "[1.2.3.4]x", "-a", "a..:1:"])
def test_what_is_no_host_is_none(text):
    assert host_and_port(text) is None


@pytest.mark.parametrize("name", ["http://x", "x/y", "", "a b", "user@x"])
def test_a_host_option_that_is_none_is_told(name):
    from core.cli.page import run

    with pytest.raises(ProblemsError) as told:
        run(["--host", name])
    assert "--host" in told.value.problems[0].what
