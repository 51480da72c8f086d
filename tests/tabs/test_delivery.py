"""How the page's texts travel: packed, tagged, and kept where their name says that they never change."""

from __future__ import annotations

import gzip
import json
import re

import brotli
import pytest
from test_request_check import ask

from tabs.server import frontend


@pytest.mark.parametrize(("way", "unpack"), [("br", brotli.decompress), ("gzip", gzip.decompress)])
def test_the_page_is_packed_and_the_same(served, way, unpack):
    plain = ask(served, "GET", "/")[1]
    status, content, headers = ask(served, "GET", "/", Accept_Encoding=way)
    assert status == 200 and headers["content-encoding"] == way and "Accept-Encoding" in headers["vary"]
    assert unpack(content) == plain and len(content) < len(plain) / 5 and int(headers["content-length"]) == len(content)


def test_what_a_browser_has_is_not_sent_again(served):
    _, _, headers = ask(served, "GET", "/", Accept_Encoding="br")
    assert headers["cache-control"] == "private, no-cache"
    status, content, _ = ask(served, "GET", "/", Accept_Encoding="br", If_None_Match=headers["etag"])
    assert status == 304 and content == b""
    assert ask(served, "GET", "/", If_None_Match='"other"')[0] == 200


def test_only_the_pages_own_scripts_carry_the_nonce_without_which_none_runs(served):
    _, page, headers = ask(served, "GET", "/")
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["object-src"] == "'none'" and policy["base-uri"] == policy["frame-ancestors"] == "'self'"
    assert policy["script-src-attr"] == "'none'"
    (nonce,) = re.findall(r"'nonce-([\w-]{20,})'", policy["script-src"])
    assert policy["script-src"] == f"'self' blob: 'unsafe-eval' 'nonce-{nonce}'"
    tags = re.findall(rb"<script[\s>][^>]*", page)
    assert len(tags) > 4 and all(f'nonce="{nonce}"'.encode() in tag for tag in tags)
    name = re.search(rb"/(assets/index-[\w-]+\.js)", page).group(1).decode()
    other = ask(served, "GET", f"/{name}")[2]["content-security-policy"]
    assert "script-src 'self'" in other and nonce not in other
    again = ask(served, "GET", "/", If_None_Match=headers["etag"])
    assert again[0] == 304 and again[2]["content-security-policy"] == headers["content-security-policy"]


FOREIGN = """() => new Promise((done) => {
  const seen = [];
  document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
  window.ran = [];
  const holder = document.createElement("div");
  holder.innerHTML = `<img src="data:," onerror="ran.push('handler')"><iframe srcdoc="<script>parent.ran.push('frame')</script>"></iframe>`;
  document.body.append(holder);
  const inline = document.createElement("script");
  inline.textContent = "ran.push('inline')";
  const outside = document.createElement("script");
  outside.src = "https://127.0.0.1:9/x.js";
  document.body.append(inline, outside);
  setTimeout(() => { holder.remove(); done({ran, seen: [...new Set(seen)].sort()}); }, 1500);
})"""


@pytest.mark.slow
def test_no_foreign_script_runs_in_the_page_and_every_tab_opens_without_an_error(visit):
    seen = visit(fresh=True)
    tab = seen.open()
    for name in ("Dataset", "Captions", "Train", "Monitor", "Runs", "Generate", "Tools"):
        tab.get_by_role("tab", name=name, exact=True).click()
        tab.wait_for_function("(name) => location.hash.startsWith('#' + name)", arg=name)
        tab.wait_for_timeout(500)
    assert seen.errors == [] and seen.outside == []
    found = tab.evaluate(FOREIGN)
    assert found == {"ran": [], "seen": ["script-src-attr", "script-src-elem"]}
    seen.errors.clear()


def test_files_with_a_hash_in_their_name_are_kept_for_good(served):
    name = re.search(rb"/(assets/index-[\w-]+\.js)", ask(served, "GET", "/")[1]).group(1).decode()
    _, _, headers = ask(served, "GET", f"/{name}", Accept_Encoding="br")
    assert "immutable" in headers["cache-control"] and headers["content-encoding"] == "br"
    assert "immutable" not in ask(served, "GET", "/config")[2].get("cache-control", "")


def test_streams_and_images_are_left_as_they_are():
    from tabs.server.delivery import _is_text

    def start(kind: str, status: int = 200, **more: str) -> dict:
        listed = [(b"content-type", kind.encode()), *((name.encode(), text.encode()) for name, text in more.items())]
        return {"status": status, "headers": listed}

    assert _is_text(start("text/html; charset=utf-8")) and _is_text(start("application/json"))
    for kind in ("text/event-stream", "image/png", "application/octet-stream"):
        assert not _is_text(start(kind)), kind
    assert not _is_text(start("text/html", 206)) and not _is_text(start("text/html", **{"content-encoding": "br"}))


MOST_FILES = 12  # 7 measured; 74 before the files were joined
MOST_REQUESTS = 40  # with 12 small images, and the pulse that goes on while a slow machine makes the page
KINDS = frozenset({"html", "textbox", "dropdown"})


def counted(seen) -> list[str]:
    """Addresses that a window asks the server for from now on; what it takes from its own memory is none."""
    asked: list[str] = []
    seen.tab.on("request", lambda request: request.url.startswith("http") and asked.append(request.url))
    return asked


@pytest.mark.slow
def test_a_first_load_takes_few_requests_and_the_page_works(visit):
    seen = visit(fresh=True)
    asked = counted(seen)
    tab = seen.open()
    files = [address for address in asked if not re.search("/gradio_api/run/|/atelier/thumb", address)]
    assert len(files) <= MOST_FILES and len(asked) <= MOST_REQUESTS, "\n".join(asked)
    single = [address for address in asked if re.search(r"/assets/(?!page-).+\.js$", address)]
    assert not single and sum("/assets/page-" in address for address in asked) == 2
    for name in ("Dataset", "Captions", "Generate", "Tools"):
        tab.get_by_role("tab", name=name, exact=True).click()
        tab.wait_for_function("(name) => location.hash === '#' + name", arg=name)
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    assert not seen.errors


@pytest.mark.slow
def test_a_browser_without_import_maps_loads_the_files_one_by_one(visit):
    seen = visit()
    seen.tab.add_init_script("HTMLScriptElement.supports = undefined")
    asked = counted(seen)
    seen.open()
    assert not seen.errors and any(re.search(r"/assets/core-.+\.js$", address) for address in asked)


def test_joined_modules_import_by_name_and_nothing_is_left_out():
    pack = frontend.pack(KINDS)
    script = pack.files[pack.script][1].decode()
    sources = json.loads(script[script.index("sources = ") + 10 : script.index(", styles = ")])
    for name, source in sources.items():
        assert "import.meta" not in source and not frontend.STATIC.search(source), name
        assert set(re.findall(r'(?:from|import)"gradio-assets/([\w.-]+)"', source)) <= set(sources), name
    assert {name for name in frontend.needed_files(KINDS, frontend.ASSETS) if name.endswith(".js")} == set(sources)


def test_no_output_of_any_listener_is_told_how_far_its_answer_is(served):
    """Gradio looks for each output in the whole tree, twice a message: 300 ms of a switch of tabs."""
    listeners = served.blocks.config["dependencies"]
    assert {each["show_progress"] for each in listeners} == {"hidden"}
    pack = frontend.pack(frozenset(block.get_block_name() for block in served.blocks.blocks.values()))
    assert pack.files[pack.script][1].count(b"if(r===`hidden`)t=n=[];") == 1


def test_files_that_are_not_as_known_leave_the_page_as_it_is(tmp_path):
    (tmp_path / "index.html").write_text("<script type=module src=./assets/other.js></script>")
    page = b"<script>x</script>"
    assert frontend.pack(KINDS, tmp_path / "assets").insert_into(page) == page
    assert frontend.pack(KINDS).insert_into(page) == page


def test_the_page_is_written_once_for_each_address_and_for_those_with_and_without_a_login(
    tmp_path_factory, served, monkeypatch
):
    import gradio.routes as routes
    from page_server import Served

    written, whole = [], routes.templates.TemplateResponse

    def counted(*rest, **more):
        written.append(more["context"]["config"].get("auth_required", False))
        return whole(*rest, **more)

    monkeypatch.setattr(routes.templates, "TemplateResponse", counted)
    host = f"localhost:{served.blocks.server_port}"
    first = ask(served, "GET", "/", Host=host)[1]
    assert ask(served, "GET", "/", Host=host)[1] == first and len(written) <= 1
    assert ask(served, "GET", "/")[1] != first, "its addresses name the host"
    page = Served(tmp_path_factory.mktemp("written"), shared=True, auth=("mira", "secret"))
    try:
        page.blocks.app.tokens["token"] = "mira"
        cookie = f"access-token-unsecure-{page.blocks.app.cookie_id}=token"
        written.clear()
        pages = [ask(page, "GET", "/", **more)[1] for more in ({}, {"Cookie": cookie}) * 2]
        assert pages[:2] == pages[2:] and b"auth_required" in pages[0] and b"auth_required" not in pages[1]
        assert written == [True, False]
    finally:
        page.close()
