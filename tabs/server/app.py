"""Builds the page with its tabs, and starts the server with its routes and middleware."""

import contextlib
import functools
import importlib
import importlib.util
import io
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.brotli_middleware import BrotliMiddleware
from gradio.route_utils import CustomCORSMiddleware
from gradio.tunneling import CURRENT_TUNNELS
from starlette.middleware import Middleware

from core.record.allowed import keep_files_inside
from core.record.heap import freeze_gc, without_gc
from core.record.space import clear
from core.record.workspace import Workspace
from tabs import header, pulse
from tabs.context import TABS, Page, make_page, run_all
from tabs.pieces import ASSETS, piece
from tabs.server.delivery import Delivery
from tabs.server.direct import calls_itself
from tabs.server.hosts import LOOPBACK, Hosts
from tabs.server.limits import Limits, limit_connections, slow_main_loop
from tabs.server.message_check import CheckedBlocks, MessageCheck
from tabs.server.request_check import RequestCheck
from tabs.theme import theme

FIRST_ASSETS = ("helpers.js", "base.js", "page.css")
PORTS_TRIED = 100
LAUNCHES = 5

Login = tuple[str, str]  # user, password


def build(page: Page) -> gr.Blocks:
    """Build all components and event listeners of a page, tab by tab."""
    with CheckedBlocks(
        title="Atelier", analytics_enabled=False, fill_width=False, delete_cache=(86400, 86400)
    ) as blocks:
        header.build(page)
        with gr.Tabs(selected="Train", elem_id="tabs", overflow_behavior="wrap") as page.tabs:
            tabs = {name: gr.Tab(name, id=name) for name in TABS if _module(name)}
        for name, tab in tabs.items():
            with tab:
                # Each tab is a chapter below the page's h1; its name is on the tab already.
                gr.HTML(f'<h2 class="unseen" data-tab="{name}">{name}</h2>', padding=False, elem_classes="tab-heading")
                importlib.import_module(f"tabs.{name.lower()}.tab").build(page)
        for name, tab in tabs.items():
            run_all(page, tab.select, page.shows.get(name, []))
        run_all(page, blocks.load, page.loads + page.shows.get("Train", []))
        pulse.build(page)
    return blocks


def _module(tab: str) -> bool:
    """Whether the tab with this title has a package with a module `tab`."""
    return importlib.util.find_spec(f"tabs.{tab.lower()}.tab") is not None


def free_port(host: str, port: int) -> int:
    """Return `port`, or the next one that no program listens on. Raises OSError if none of PORTS_TRIED is free."""
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            if os.name != "nt":  # a port that waits for its last packets is free; on Windows it means more
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return candidate
            except OSError:
                continue
    raise OSError(f"no free port from {port} to {port + PORTS_TRIED - 1}")


def _serve_at_free_port(serve_at: Any, host: str, port: int) -> None:
    """Call `serve_at(server_port=...)` with the first free port from `port` on; with a later one if another program takes it meanwhile.
    Raises OSError after LAUNCHES attempts."""
    for attempt in range(LAUNCHES):
        candidate = free_port(host, port)
        try:
            serve_at(server_port=candidate)
            return
        except OSError:
            if attempt == LAUNCHES - 1:
                raise
            port = candidate + 1 if candidate + 1 < 65536 else port


def _lifespan(
    check: Callable[[Any], Any], blocks: gr.Blocks, nonce: str, within: Sequence[Any] = ()
) -> Callable[[Any], Any]:
    """Return the lifespan of an app: it installs the middleware before the first request and runs the lifespans of `within`.

    check    wraps the app's middleware stack
    blocks   the app's components
    nonce    for the page's scripts
    within   apps of other people's pages
    """

    def kinds() -> frozenset[str]:
        return frozenset(block.get_block_name() for block in blocks.blocks.values())

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        # No other site gets an answer, so CORS is not needed; Gradio's Brotli does not compress the page itself.
        removed = (CustomCORSMiddleware, BrotliMiddleware)
        app.user_middleware = [each for each in app.user_middleware if each.cls not in removed]
        app.user_middleware += [
            Middleware(Delivery, kinds, lambda: not app.get_blocks().share, nonce),
            Middleware(MessageCheck, app.get_blocks),
        ]
        app.middleware_stack = check(app.build_middleware_stack())
        async with contextlib.AsyncExitStack() as stack:
            for each in within:
                await stack.enter_async_context(each.router.lifespan_context(each))
            yield

    return lifespan


def launch(
    page: Page,
    *,
    host: str,
    port: int,
    share: bool,
    auth: Login | None,
    browser: bool = False,
    names: Collection[str] = (),
    owner: Login | None = None,
    people: Mapping[Login, Page] = {},
) -> gr.Blocks:
    """Start the server at `port` or the next free one, and return its Blocks without waiting. `blocks.local_url` is the URL,
    `blocks.share_url` the public one, `blocks.server_port` the port.

    auth      first login; None for a page without login
    browser   whether to open a browser
    names     further host names of the page
    owner     login that may cancel and move the jobs of all guests
    people    {login: page}: logins with a page each; `auth` is the owner's then
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    uploads = page.workspace.private / "uploads"
    clear(uploads)  # those of a page that was killed: Gradio deletes what the same process has stored
    os.environ.setdefault("GRADIO_TEMP_DIR", str(uploads))
    if not (share or names):  # without a proxy, forwarded addresses of clients are not trusted
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
    for each in (page, *people.values()):
        each.login = bool(auth)
    blocks, nonce = build(page), secrets.token_urlsafe(16)
    apps = {name: _app_of_person(each, nonce) for (name, _), each in people.items()}
    limits = Limits(lambda: blocks.app.tokens if auth else None, owner[0] if owner else "")
    hosts = Hosts(host not in LOOPBACK, tuple(names), lambda: getattr(blocks, "share_url", None) or "")

    def request_check(app: Any) -> RequestCheck:
        return RequestCheck(app, hosts, limits, page.workspace.private, shared=page.shared, people=apps)

    serve_at = functools.partial(
        blocks.launch,
        server_name=host,
        share=share,
        auth=list(dict.fromkeys([auth, *([owner] if owner else []), *people])) if auth else None,
        auth_message="Atelier. Use the name and password shown where it was started." if auth else None,
        inbrowser=browser,
        prevent_thread_lock=True,
        _frontend=False,  # Gradio's own call at its address gives up after 3 s, which a busy machine may need
        quiet=True,
        **_gradio_options(page, blocks, nonce, request_check, list(apps.values())),
    )
    with calls_itself():
        _serve_at_free_port(serve_at, host, port)
    limit_connections(blocks.server)
    slow_main_loop(blocks.server)
    page.engine.runs_so_far(0)  # begins to read the runs, so that their list opens at once
    # Gradio's page for share links fetches its script from a server elsewhere; the ordinary one works there too.
    blocks.share = False
    return blocks


def _gradio_options(
    page: Page, blocks: gr.Blocks, nonce: str, check: Callable[[Any], Any] = lambda app: app, within: Sequence[Any] = ()
) -> dict[str, Any]:
    """Return the arguments for Gradio of a page with these blocks, the same for every login. check, within: as in `_lifespan`."""
    return {
        "show_error": True,
        "footer_links": [],
        "run_history": False,
        "favicon_path": ASSETS / "favicon.png",
        "ssr_mode": False,
        "theme": theme(),
        "css": _assets("css"),
        "head": f'{piece("outline")}<script nonce="{nonce}">\n{_script_data(page)}\n{_assets("js")}\n</script>',
        "app_kwargs": {
            "routes": page.links.routes(),
            "lifespan": _lifespan(check, blocks, nonce, within),
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }


def _app_of_person(page: Page, nonce: str) -> FastAPI:
    """Return the app of one person's page. The server checks requests and logins before they reach it."""
    blocks = build(page)
    return gr.mount_gradio_app(FastAPI(openapi_url=None), blocks, "/", **_gradio_options(page, blocks, nonce))


def _assets(kind: str) -> str:
    """Return the contents of all files of a kind ("css", "js") in tabs/assets, beginning with those of FIRST_ASSETS."""
    places = {name: place for place, name in enumerate(FIRST_ASSETS)}
    paths = sorted(ASSETS.glob(f"*.{kind}"), key=lambda path: (places.get(path.name, len(places)), path.name))
    return "\n".join(path.read_text("utf-8") for path in paths)


def _script_data(page: Page) -> str:
    """Return JavaScript that defines `window.atelier`, the constants of the page's script. `</` is escaped, as it would end the script
    element."""
    return f"window.atelier = {json.dumps(page.script_data(), ensure_ascii=False)};".replace("</", "<\\/")


def serve(
    engine: Any,
    workspace: Workspace,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    logins: Sequence[Login] = (),
    browser: bool = True,
    names: Collection[str] = (),
    keys: bool = False,
) -> None:
    """Serve the page until Ctrl-C and print its URL. A page that others can reach always has a password.

    logins   (user, password); with several the first is the owner's, and each of the others has a form, presets and runs of its own
    names    further host names of the page
    keys     whether jobs of a shared page may use the owner's keys
    """
    shared = share or bool(names) or host not in LOOPBACK
    auth, owner, people = _login_roles(logins, shared)
    opens = browser and can_show_a_browser()
    with without_gc():
        new_page = functools.partial(make_page, engine, shared=shared, keys=keys)
        page, pages = new_page(workspace), {login: new_page(replace(workspace, person=login[0])) for login in people}
        if people:
            engine.people, engine.owner = frozenset(name for name, _ in people), logins[0][0]
        keep_files_inside(page.roots.folders if shared else None, keys=keys)  # also the files that other files name
        # Gradio prints the share link, or advice to download its program by hand, which helps nobody on Colab.
        with contextlib.redirect_stdout(io.StringIO()):
            blocks = launch(
                page,
                host=host,
                port=port,
                share=share,
                auth=auth,
                browser=opens,
                names=names,
                owner=owner,
                people=pages,
            )
    freeze_gc()
    if blocks.server_port != port:
        print(f"Port {port} is taken; using {blocks.server_port}.", flush=True)
    address = getattr(blocks, "share_url", None) or reachable(host, blocks.server_port)
    if share and not getattr(blocks, "share_url", None):
        also = f" and as {', '.join(names)}" if names else " only"
        print(
            "The share link could not be created: Gradio's relay, or the program for it (frpc), cannot be reached. Start again to try "
            f"once more; on Colab run the cell again, or open the other address that it prints. The page is open on this machine{also}.",
            flush=True,
        )
    print(f"Atelier is at {address}", flush=True)
    if hasattr(engine, "announce"):
        engine.announce(f"the page at {address}")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        for each in (page, *pages.values()):
            each.tensorboard.close()
        blocks.close()
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()


def _login_roles(logins: Sequence[Login], shared: bool) -> tuple[Login | None, Login | None, Sequence[Login]]:
    """Return (first login or None, the owner's login or None, logins of people with a page of their own).

    A shared page without a login gets one, and one with a single login gets a second for the owner; generated logins are printed.
    """
    if len(logins) > 1:
        return logins[0], logins[0], logins[1:]
    if not shared:
        return (logins[0] if logins else None), None, ()
    if not logins:
        logins = [("atelier", secrets.token_urlsafe(9))]
        print(
            f"The page is open to others, so it has a login.  User: {logins[0][0]}  Password: {logins[0][1]}",
            flush=True,
        )
    owner = ("owner" if logins[0][0] != "owner" else "host", secrets.token_urlsafe(9))
    print(f"To end and move the jobs of everybody, log in as  User: {owner[0]}  Password: {owner[1]}", flush=True)
    return logins[0], owner, ()


def reachable(host: str, port: int) -> str:
    """Return the URL to open; for a page that listens on all interfaces, with this machine's address in the network."""
    if host not in ("0.0.0.0", "::"):
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # chooses a network card; a datagram socket sends nothing by this
            return f"http://{probe.getsockname()[0]}:{port}"
        except OSError:
            return f"http://127.0.0.1:{port}"


def can_show_a_browser() -> bool:
    """Whether this machine has a desktop: without one, a text browser would open in the terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
