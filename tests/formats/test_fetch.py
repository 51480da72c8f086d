"""One file from a server that does everything that servers do: each time the file is whole and right, or not there."""

import hashlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from core import tasks
from core.formats.detect import FAMILY_NAMES
from core.formats.hub import catalog, fetch
from core.formats.hub import references as hub
from core.formats.hub.catalog import ENTRIES
from core.formats.hub.fetch import FetchError, Remote
from core.formats.hub.references import HubId, Link, download, forget, parse_source, resolve
from core.record.cancel import Cancelled, CancelToken
from core.record.commands import CommandReader
from core.record.context import JobContext
from core.record.journal import Journal
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.space import RESERVE
from core.record.workspace import Workspace
from core.settings.base import declared
from core.settings.job import TrainJob
from core.settings.tools.model_files import DownloadSettings
from tests.local_server import Answers, as_hub, model_bytes, serving
from tests.offline import no_network
from tests.refusals import refused

NUMBERS = np.arange(2_999_920)
DATA = model_bytes((NUMBERS * 7 + NUMBERS // 251).astype(np.uint8).tobytes())
assert len(DATA) == 3_000_000
HASH = hashlib.sha256(DATA).hexdigest()


class Server(Answers):
    """Answers with the next of `server.script`, the last one for ever: functions of this handler."""

    def do_GET(self):
        server = self.server
        server.asked.append(SimpleNamespace(path=self.path, headers=dict(self.headers)))
        script = server.script
        (script.pop(0) if len(script) > 1 else script[0])(self)

    def answer(self, status=200, body=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def serve(data=DATA, cut=None, etag='"one"', ranges=True, honest=True, pause=0.0, **headers):
    """A file: cut after so many bytes, with or without ranges; not `honest`: a range whatever If-Range says."""

    def send(handler):
        asked, only_if = handler.headers.get("Range"), handler.headers.get("If-Range")
        start = int(asked[6:-1]) if asked and ranges and (not honest or only_if in (None, etag)) else 0
        if asked and start >= len(data):
            handler.answer(416, Content_Range=f"bytes */{len(data)}")
            return
        if pause:
            time.sleep(pause)
        known = headers | ({"ETag": etag} if etag else {})
        if start:
            known["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        handler.answer(206 if start else 200, body if cut is None else body[:cut], len(body), **known)

    return send


def status(code, **headers):
    return lambda handler: handler.answer(code, **headers)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.001)
    leaves = {"handle_error": lambda *_: None}  # a client that has what it wants, or gives up
    with serving(Server, script=[serve()], asked=[], **leaves) as made:
        as_hub(monkeypatch, made)
        yield made


def get(server, folder, sha256=HASH, size=None, **more):
    path = folder / "model.safetensors"
    fetch.fetch(Remote(f"{server.endpoint}/model.safetensors", size, sha256), path, lambda done, total: None, **more)
    return path


def starts_of(server):
    return [asked.headers.get("Range") for asked in server.asked]


def left_in(folder):
    return sorted(file.name for file in folder.iterdir())


WHOLE = {
    "at once": [serve()],
    "cut twice": [serve(cut=900_000), serve(cut=700_000), serve()],
    "cut, and then no ranges": [serve(cut=900_000), serve(ranges=False)],
    "cut, without an ETag": [serve(cut=900_000, etag=""), serve(etag="")],
    "cut, with a weak ETag": [serve(cut=900_000, etag='W/"x"'), serve(etag='W/"x"')],
    "changed after the cut": [serve(bytes(2_000_000), cut=900_000, etag='"old"'), serve()],
    "changed, and If-Range ignored": [serve(bytes(3_000_000), cut=900_000, etag='"old"'), serve(honest=False), serve()],
    "another range than asked for": [
        serve(cut=900_000),
        lambda handler: handler.answer(206, DATA[5:], Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}"),
        serve(),
    ],
    "refused as beyond the end": [serve(cut=900_000), status(416), serve()],
    "busy": [status(503), status(429, Retry_After="0"), status(500), serve()],
    "byte by byte": [serve(cut=1), serve(cut=1), serve(cut=0), serve()],
}


@pytest.mark.parametrize("case", WHOLE)
def test_whatever_the_server_does_the_file_comes_whole(tmp_path, server, case):
    server.script = list(WHOLE[case])
    path = get(server, tmp_path)
    assert path.read_bytes() == DATA
    assert left_in(tmp_path) == ["model.safetensors"], "nothing temporary stays"


def test_a_cut_download_asks_only_for_the_rest_and_names_the_file_it_began(tmp_path, server):
    server.script = [serve(cut=900_000), serve()]
    get(server, tmp_path)
    assert starts_of(server) == [None, "bytes=900000-"]
    assert server.asked[1].headers["If-Range"] == '"one"'


def test_a_later_try_goes_on_where_an_earlier_one_stopped(tmp_path, server):
    server.script = [serve(cut=900_000), status(403)]
    with pytest.raises(FetchError):
        get(server, tmp_path)
    assert left_in(tmp_path) == ["model.safetensors.part", "model.safetensors.part.json"]
    server.script = [serve()]
    assert get(server, tmp_path).read_bytes() == DATA
    assert starts_of(server)[-1] == "bytes=900000-"


def test_the_rest_of_another_file_is_not_joined(tmp_path, server):
    (tmp_path / "model.safetensors.part").write_bytes(b"of something else")
    assert get(server, tmp_path).read_bytes() == DATA
    assert starts_of(server) == [None]


def test_all_bytes_here_and_only_the_name_missing(tmp_path, server):
    server.script = [serve(cut=len(DATA) - 1), status(403)]
    with pytest.raises(FetchError):
        get(server, tmp_path)
    with open(tmp_path / "model.safetensors.part", "ab") as part:
        part.write(DATA[-1:])
    server.script = [serve()]
    assert get(server, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(
    ("script", "sha256", "size", "words"),
    [
        ([serve(DATA[:-1] + b"?")], HASH, None, "damaged"),
        ([serve(DATA[:1000])], None, 5000, "damaged"),
        ([serve(X_Linked_ETag=f'"{"0" * 64}"')], HASH, None, "another SHA-256"),
        ([serve(X_Linked_ETag=f'"{"0" * 64}"')], None, None, "damaged"),
        ([serve(b"<html>", Content_Type="text/html; charset=utf-8")], None, None, "web page"),
        ([status(401)], HASH, None, "login"),
        ([status(403)], HASH, None, "403"),
        ([status(404)], HASH, None, "404"),
        ([status(410)], HASH, None, "410"),
        ([status(429)], HASH, None, "slow down"),
        ([status(503)], HASH, None, "503"),
        ([status(418)], HASH, None, "418"),
        ([serve(cut=0)], HASH, None, "connection ended after 0 of 3,000,000"),
    ],
)
def test_what_cannot_be_fetched_is_said_and_never_lies_there_as_a_model(tmp_path, server, script, sha256, size, words):
    server.script = script
    with pytest.raises(FetchError, match=words):
        get(server, tmp_path, sha256, size)
    assert "model.safetensors" not in left_in(tmp_path)
    assert len(server.asked) <= fetch.TRIES


def test_a_server_that_says_when_to_come_back_is_left_alone_until_then(tmp_path, server):
    server.script = [status(429, Retry_After="1"), serve()]
    began = time.monotonic()
    get(server, tmp_path)
    assert time.monotonic() - began >= 1


def test_a_server_that_stops_answering_is_asked_again(tmp_path, server, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.2)
    server.script = [serve(pause=1.0), serve(cut=900_000), serve(pause=1.0), serve()]
    with pytest.raises(FetchError, match="does not answer"):
        get(server, tmp_path)  # the first of all: there may be no network
    assert get(server, tmp_path).read_bytes() == DATA


def test_pausing_keeps_what_has_come_and_waiting_can_be_ended(tmp_path, server):
    token = CancelToken()
    path = tmp_path / "model.safetensors"
    with pytest.raises(Cancelled):
        remote = Remote(f"{server.endpoint}/model.safetensors", None, HASH)
        fetch.fetch(remote, path, lambda done, total: token.cancel(), token)
    assert fetch.partial_bytes(path) > 0 and not path.exists()
    server.script = [status(503, Retry_After="60")]
    token = CancelToken()
    threading.Timer(0.3, token.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        get(server, tmp_path, cancel=token)
    assert time.monotonic() - began < 60


def test_a_redirect_is_followed_and_what_the_hub_states_before_it_counts(tmp_path, server):
    def to_the_store(handler):
        if handler.path == "/store":
            return serve()(handler)
        return handler.answer(302, Location="/store", X_Linked_ETag=f'"{HASH}"')

    server.script = [to_the_store]
    assert get(server, tmp_path, sha256=None).read_bytes() == DATA
    server.script = [lambda handler: serve(bytes(9))(handler) if handler.path == "/store" else to_the_store(handler)]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FetchError, match="damaged"):
        get(server, tmp_path, sha256=None)


def test_room_is_looked_for_as_soon_as_the_size_is_known(tmp_path, server, monkeypatch):
    monkeypatch.setattr("core.record.machine.free_disk", lambda _: RESERVE + len(DATA) - 1)
    with refused("disk.space"):
        get(server, tmp_path)
    assert fetch.partial_bytes(tmp_path / "model.safetensors") == 0


def endless(handler):
    """A body without a length; ended after 40 MB, so that a test fails instead of filling the disk."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(bytes(1_000_000))


def test_a_body_without_an_end_stops_before_the_disk_is_full(tmp_path, server, monkeypatch):
    server.script = [endless]
    part = tmp_path / "model.safetensors"
    monkeypatch.setattr("core.record.machine.free_disk", lambda _: RESERVE + 5_000_000 - fetch.partial_bytes(part))
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 100_000)
    with refused("disk.space"):
        get(server, tmp_path, sha256=None)
    assert fetch.partial_bytes(part) < 8_000_000


def test_a_body_without_an_end_stops_at_the_size_that_is_known(tmp_path, server):
    server.script, seen = [endless], []
    remote = Remote(f"{server.endpoint}/model.safetensors", 3_000_000, HASH)
    with pytest.raises(FetchError, match="damaged"):
        fetch.fetch(remote, tmp_path / "model.safetensors", lambda done, total: seen.append(done))
    assert max(seen) < 8_000_000 and not left_in(tmp_path)


# ---- the catalog ----


@pytest.fixture
def entry(server, monkeypatch):
    """The first entry with a file of 3 MB, served here."""
    import dataclasses

    small = dataclasses.replace(ENTRIES[0], size=len(DATA), sha256=HASH)
    monkeypatch.setattr(catalog, "ENTRIES", (small, *ENTRIES[1:]))
    return small


def test_every_entry_is_complete_and_pinned():
    assert len({entry.id for entry in ENTRIES}) == len({entry.place for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        pinned = len(entry.revision) == 40 and int(entry.revision, 16)
        assert fetch.SHA256.fullmatch(entry.sha256) and (pinned or "revision" in entry.unverified)
        assert set(entry.unverified) <= {"license", "revision", "author"} and entry.family in FAMILY_NAMES
        assert entry.needs.keys() <= {each.path for each in declared(TrainJob)}
        assert entry.size > 1e8 and entry.license_url.startswith("https://") and entry.purpose
        assert entry.place.endswith(".safetensors") and ".." not in entry.place
        assert HubId(*entry.repository.split("/"), entry.file) == parse_source(entry.id)


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("sd15", "sd15"),
        ("SD1.5", "sd15"),
        ("SD 1.5", "sd15"),
        ("sd-v1-5", "sd15"),
        ("v1-5-pruned-emaonly", "sd15"),
        ("runwayml/stable-diffusion-v1-5", "sd15"),
        ("sd2.1", "sd21"),
        ("stabilityai/stable-diffusion-2-1", "sd21"),
        ("SDXL", "sdxl"),
        ("sd_xl_base_1.0.safetensors", "sdxl"),
        ("sdxl-vae-fp16-fix", "sdxl-vae"),
        ("Illustrious XL", "illustrious"),
        ("NoobAI-XL", "noobai"),
        ("noobai vpred", "noobai-vpred"),
        ("Pony V6", "pony"),
        ("Animagine XL 4.0", "animagine"),
        ("Realistic Vision 5.1", "realistic-vision"),
    ],
)
def test_what_people_type_leads_to_the_entry(tmp_path, text, id):
    entry = next(each for each in ENTRIES if each.id == id)
    assert resolve(text, tmp_path) == HubId(*entry.repository.split("/"), entry.file)


def test_an_entry_is_fetched_from_its_commit_to_its_place_and_found_by_any_of_its_names(tmp_path, server, entry):
    path = download(parse_source("sd15"), tmp_path)
    assert path == tmp_path / entry.place and path.read_bytes() == DATA
    assert entry.revision in server.asked[0].path
    for name in ("sd15", "sd1.5", "runwayml/stable-diffusion-v1-5", f"{entry.repository}/{entry.file}"):
        assert resolve(name, tmp_path) == path
    assert catalog.recorded(tmp_path)[entry.place]["sha256"] == HASH


def test_a_file_put_there_by_hand_is_noticed_once_it_is_whole(tmp_path, entry):
    for place in (entry.place, f"Stable-diffusion/{entry.file}"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(DATA[:-5])
        assert isinstance(resolve("sd15", tmp_path), HubId) and catalog.installed_path(entry, tmp_path) is None
        path.write_bytes(DATA)
        assert catalog.installed_path(entry, tmp_path) == path
        path.unlink()


def test_another_file_at_its_place_is_not_written_over(tmp_path, server, entry):
    (tmp_path / entry.place).write_bytes(b"a person's own")
    with refused("model.name-taken"):
        download(parse_source("sd15"), tmp_path)
    assert (tmp_path / entry.place).read_bytes() == b"a person's own" and server.asked == []


def test_an_unfinished_download_shows_its_bytes_and_can_be_dropped(tmp_path, server, entry):
    server.script = [serve(cut=900_000), status(403)]
    with pytest.raises(ProblemsError):
        download(parse_source("sd15"), tmp_path)
    assert catalog.state(entry, tmp_path)["have"] == 900_000 and catalog.state(entry, tmp_path)["found"] is None
    forget(parse_source("sd15"), tmp_path)
    assert catalog.state(entry, tmp_path)["have"] == 0 and left_in(tmp_path) == []


def test_too_little_room_is_said_with_the_reserve_before_anything_is_asked(tmp_path, server, entry, monkeypatch):
    monkeypatch.setattr("core.record.machine.free_disk", lambda _: 40_000_000)
    with refused("disk.space", "3 MB", "256 MB", "40 MB"):
        download(parse_source("sd15"), tmp_path)
    assert server.asked == []


def test_offline_one_line_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with no_network(allow_attempts=True), pytest.raises(ProblemsError) as caught:
        download(parse_source("sdxl"), tmp_path)
    (problem,) = caught.value.problems
    assert problem.code == "model.download-failed" and "\n" not in problem.what + problem.fix
    for words in ("sd_xl_base_1.0.safetensors", str(tmp_path / ENTRIES[2].place)):
        assert words in str(problem)


# ---- links ----


def test_a_link_is_fetched_under_its_own_name(tmp_path, server):
    path = download(parse_source(f"{server.endpoint}/files/my%20model.safetensors?token=x"), tmp_path)
    assert path == tmp_path / "my model.safetensors" and path.read_bytes() == DATA
    assert "Authorization" not in server.asked[0].headers


@pytest.fixture
def downloaded(tmp_path):
    """downloaded(link) -> the lines that the tool says of it; models are in tmp_path/models."""

    def run(link):
        workspace = Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")
        folder = RunFolder.create(workspace.runs, "download", {})
        with Journal(folder.path) as journal:
            context = JobContext(workspace, folder, journal, CommandReader(folder.path))
            return tasks.named("download").run(DownloadSettings(hub_id=link), context).lines

    return run


def test_a_link_is_here_only_if_its_own_bytes_are(tmp_path, server, downloaded):
    first, other = f"{server.endpoint}/one/model.safetensors", f"{server.endpoint}/two/model.safetensors"
    file = tmp_path / "models" / "model.safetensors"
    downloaded(first)
    asked = len(server.asked)
    assert "already downloaded" in downloaded(first)[0] and len(server.asked) == asked
    for link in (other, f"{first}?version=2"):
        with refused("model.name-taken"):
            downloaded(link)
    file.write_bytes(DATA[:-1] + b"?")  # of the same size, as models of one kind are
    with refused("model.name-taken"):
        downloaded(first)
    file.unlink()
    server.script = [serve(model_bytes(b"another"))]
    assert "already downloaded" not in downloaded(other)[0] and file.read_bytes() == model_bytes(b"another")


def test_a_file_put_there_by_hand_is_not_taken_for_a_link(tmp_path, server, downloaded):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.safetensors").write_bytes(DATA)
    with refused("model.name-taken"):
        downloaded(f"{server.endpoint}/model.safetensors")


PAGE = b"<!DOCTYPE html><html><body>Log in</body></html>"


@pytest.mark.parametrize(
    ("file", "data", "code"),
    [
        ("a.safetensors", PAGE, "model.page-file"),
        ("a.ckpt", PAGE, "model.page-file"),
        ("a.safetensors", b"", "model.empty-file"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "model.pointer-file"),
        ("a.safetensors", b'{"error": "log in"}', "model.page-file"),
        ("a.safetensors", b"\x80\x02}q\x00.", "model.other-format"),
        ("a.safetensors", b"PK\x03\x04" + bytes(100), "model.other-format"),
        ("a.safetensors", DATA[:-9], "model.truncated"),
        ("a.safetensors", DATA[:8] + b"{" * 100 + DATA[108:], "file.not-json"),
    ],
)
def test_what_is_no_model_of_its_extension_is_not_kept(tmp_path, server, downloaded, file, data, code):
    server.script = [serve(data, Content_Type="application/octet-stream")]
    with refused(code, file):
        downloaded(f"{server.endpoint}/{file}")
    assert left_in(tmp_path / "models") == []


def test_the_token_that_is_stored_in_tools_opens_models_that_ask_for_one(tmp_path, server, entry, monkeypatch):
    (tmp_path / "keys.json").write_text('{"huggingface_token": "hf_stored_token"}')
    monkeypatch.setenv("ATELIER_KEYS", str(tmp_path / "keys.json"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    download(parse_source("sd15"), tmp_path / "models")
    sent = {name.lower(): value for name, value in server.asked[0].headers.items()}
    assert sent["authorization"] == "Bearer hf_stored_token"


def test_no_token_of_the_hub_goes_to_another_server(tmp_path, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(parse_source(f"{server.endpoint}/a.safetensors"), tmp_path)
    assert "hf_secret" not in str(server.asked)


def test_a_link_of_the_hub_is_its_hub_id():
    file = "https://huggingface.co/owner/model/{}/main/sub/a.safetensors?download=true"
    for kind in ("resolve", "blob"):
        assert parse_source(file.format(kind)) == HubId("owner", "model", "sub/a.safetensors")
    assert isinstance(parse_source("https://huggingface.co/owner/model/resolve/0123abc/a.safetensors"), Link)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no id",
        "ftp://host/a.safetensors",
        "file:///etc/a.safetensors",
        "https://host/",
        "https://host/a.exe",
        "https://host/..%2F..%2Fa.safetensors/.safetensors",
        "https://host/%2e%2e%2fa.safetensors",
        "https://host/a%00.safetensors",
        "https://user:secret@host/a.safetensors",
        "https://[bad/a.safetensors",
        "https://host/.hidden.safetensors",
    ],
)
def test_what_is_no_link_of_a_model_file_is_refused(tmp_path, text):
    try:
        source = parse_source(text)
    except ProblemsError:
        return
    assert isinstance(source, Link) and (tmp_path / source.file).resolve().parent == tmp_path.resolve()
    assert not source.file.startswith(".")


def test_forgetting_a_link_removes_only_what_is_unfinished(tmp_path, server):
    path = download(parse_source(f"{server.endpoint}/a.safetensors"), tmp_path)
    forget(Link(f"{server.endpoint}/a.safetensors"), tmp_path)
    assert path.read_bytes() == DATA
    assert hub.resolve("a", tmp_path) == path


# ---- at the edges, without a server


@pytest.mark.parametrize(
    ("code", "again"),
    [(401, False), (403, False), (404, False), (407, False), (408, True), (409, False), (410, False), (424, False)]
    + [(425, True), (426, False), (428, False), (429, True), (430, False), (499, False), (500, True), (503, True)],
)
def test_these_answers_are_worth_another_try(code, again):
    for stated, seconds in (("7", 7.0), ("soon", 0.0), ("", 0.0)):
        error = fetch._refusal(SimpleNamespace(status_code=code, headers={"retry-after": stated} if stated else {}))
        assert (error.retriable, error.retry_after) == (again, seconds) and str(code) in error.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 5-9/10", (5, 10)),
        (" bytes 5-9/10 ", (5, 10)),
        ("bytes 5-9/*", (5, 0)),
        ("", (-1, 0)),
        ("bytes */10", (-1, 0)),
    ],
)
def test_the_range_that_a_server_states(text, expected):
    assert fetch._content_range(SimpleNamespace(headers={"content-range": text})) == expected


def transfer(tmp_path):
    return fetch._Transfer(Remote("https://host/a.bin"), tmp_path / "a.bin", lambda done, total: None, None)


@pytest.mark.parametrize(("seconds", "waited"), [(0, 0), (0.25, 0.25), (60, 60), (61, 60), (3600, 60)])
def test_a_wait_ends_after_a_minute(tmp_path, monkeypatch, seconds, waited):
    slept = []
    clock = SimpleNamespace(monotonic=lambda: 5 + sum(slept), sleep=slept.append)
    monkeypatch.setattr(fetch, "time", clock)
    transfer(tmp_path)._wait(seconds)
    assert sum(slept) == pytest.approx(waited) and max(slept, default=0) <= 0.1, "a cancel is seen soon"


@pytest.mark.parametrize(("stated", "waits"), [(0.0, [2, 4, 0, 2, 4, 8, 16, 32]), (9.0, [9, 9, 9, 9, 9, 9, 16, 32])])
def test_six_tries_in_a_row_without_a_byte_end_a_download(tmp_path, monkeypatch, stated, waits):
    waited, tries = [], []

    def request(self):
        tries.append(1)
        assert len(tries) < 20, "it goes on for ever"
        self.received += len(tries) == 3
        raise FetchError("busy", retriable=True, retry_after=stated)

    monkeypatch.setattr(fetch._Transfer, "_request", request)
    monkeypatch.setattr(fetch._Transfer, "_wait", lambda self, seconds: waited.append(seconds))
    with pytest.raises(FetchError, match="busy"):
        transfer(tmp_path).run()
    assert waited == waits and len(tries) == 9


@pytest.mark.parametrize(
    ("text", "read"),
    [(f"https://host/{'a' * 139}.safetensors", True), (f"https://host/{'a' * 140}.safetensors", False)]
    + [
        ("http://host/a.ckpt", True),
        ("HTTPS://host/a.pt?key=1", True),
        ("https://host/a.pth", True),
        ("https://host/a.bin", True),
    ]
    + [("https://host/.a.bin", False), ("https://host/a b(1)+-.bin", True), ("https://host/a%2Cb.bin", False)],
)
def test_the_name_of_a_linked_file_has_151_plain_characters(text, read):
    if read:
        assert isinstance(parse_source(text), Link)
    else:
        with refused("model.link-without-file"):
            parse_source(text)


def test_a_link_is_known_by_a_hash_of_its_query_which_is_never_shown():
    plain, one, other = (Link(f"https://host/a%20b.bin{query}") for query in ("", "?key=1", "?key=2"))
    assert str(plain) == str(one) == str(other) and plain.file == one.file == "a b.bin"
    assert plain.query == "" and len(one.query) == len(other.query) == 16 and one.query != other.query
