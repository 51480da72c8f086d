"""What a message to a listener may hold. It is checked here, before Gradio reads it: wrong arguments get a 4xx and one line in
the terminal, whatever the listener would have made of them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError
from tabs.server.delivery import buffered_response, send_response
from tabs.server.gate import UPLOAD, RequestAborted
from tabs.server.limits import LOGIN, RateLimit

CALL = "/gradio_api/run/predict"
FORMS = (UPLOAD, LOGIN)
LINES = (20 / 60, 20.0)  # printed about refusals: each second, at once
MOST_VALUES = 100_000
MOST_TEXT = 1 << 20  # characters of one field
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
UPLOADED = re.compile(r"[0-9a-f]{64}/[^/\\]+", re.DOTALL)  # as Gradio stores it: the hash of the content and the name
_unfit: ContextVar[list[str] | None] = ContextVar("unfit", default=None)


Number = Annotated[int, Field(ge=0, lt=2**31)]


class Call(BaseModel):
    """The call of a listener as the page's own script makes it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    data: list[Any]
    fn_index: Number
    session_hash: str = Field(pattern=f"^{SESSION.pattern}$")
    trigger_id: Number | None = None
    event_data: dict[str, Any] | None = None


class Wrong(Exception):
    """Why a message is refused."""


class Checked(gr.Blocks):
    """Blocks that tell values which their components refuse (no such choice, a file that was not uploaded) from faults of our own."""

    def run_startup_events(self) -> None:
        """Without Gradio's queue: no listener uses it, and its loop would wake a thousand times a second."""
        self.is_running = True
        self.create_limiter()

    async def preprocess_data(self, block_fn: Any, *rest: Any, **more: Any) -> Any:
        try:
            return await super().preprocess_data(block_fn, *rest, **more)
        except Exception as error:
            found = _unfit.get()
            if found is not None:
                found.append(f"{type(error).__name__} in the arguments of {block_fn.name}")
            raise gr.Error("These arguments do not fit", print_exception=False) from None


class Door:
    """ASGI middleware right before Gradio."""

    def __init__(self, app: Any, blocks: Callable[[], gr.Blocks], say: Callable[[str], Any] = print):
        self.app, self.blocks, self.say = app, blocks, say
        self._lines = RateLimit(*LINES)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == CALL:
            await self._call(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].rstrip("/") in FORMS:
            await self._form(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:
        body = await Request(scope, receive).body()
        try:
            body = with_uploads(check(body, self.blocks()), self._folder()) or body
        except Wrong as error:
            await self._refuse(scope, str(error), receive, send)
            return
        rest = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return rest.pop() if rest else await receive()

        unfit: list[str] = []
        token = _unfit.set(unfit)
        try:
            answer = await buffered_response(self.app, scope, again, send)
        finally:
            _unfit.reset(token)
        if answer is None:
            return
        start, content = answer
        if unfit and start["status"] == 500:
            start["status"] = 422
            self._tell(scope, unfit[0])
        await send_response(send, start, content)

    async def _form(self, scope: Any, receive: Any, send: Any) -> None:
        """An upload or a login. What comes out as an exception, Gradio could not read or the disk did not take. A browser gets the
        names of its uploads by their paths in the folder."""
        try:
            answer = await buffered_response(self.app, scope, receive, send)
        except (RequestAborted, ClientDisconnect):
            raise
        except Exception as error:
            why = str(error) if isinstance(error, OSError) else type(error).__name__
            await self._refuse(scope, why, receive, send, 507 if isinstance(error, OSError) else 400)
            return
        if answer is None:
            return
        start, content = answer
        if scope["path"] == UPLOAD and start["status"] == 200:
            names = [name.removeprefix(self._folder()).replace(os.sep, "/") for name in json.loads(content)]
            content = json.dumps(names).encode()
        await send_response(send, start, content)

    def _folder(self) -> str:
        """Where Gradio puts uploads; a browser gets and sends only what is below it."""
        return os.path.join(self.blocks().app.uploaded_file_dir, "")

    async def _refuse(self, scope: Any, why: str, receive: Any, send: Any, status: int = 422) -> None:
        self._tell(scope, why)
        words = "The files could not be stored." if status == 507 else "These arguments do not fit."
        await JSONResponse({"detail": words, "error": words}, status)(scope, receive, send)

    def _tell(self, scope: Any, why: str) -> None:
        """One line, and at most a few in a minute."""
        if self._lines.allows(1):
            self._lines.add(1)
            self.say(f"{time.strftime('%H:%M:%S')}  A request was refused: {scope['path'][:80]!a}: {why[:200]}")


def with_uploads(said: dict[str, Any], folder: str) -> bytes | None:
    """The message with the whole paths of its uploads, None where it has none."""
    values = [each for value in said["data"] for each in (value if isinstance(value, list) else [value])]
    files = [each for each in values if isinstance(each, dict) and UPLOADED.fullmatch(each["path"])]
    for file in files:
        file["path"] = os.path.join(folder, *file["path"].split("/"))
    return json.dumps(said).encode() if files else None


def check(body: bytes, blocks: gr.Blocks) -> dict[str, Any]:
    """The call of a listener as the page's own script makes it. Raises Wrong for anything else."""
    try:
        said = parse_json(body, "the message", max_values=MOST_VALUES)
    except ProblemsError as error:
        raise Wrong(error.problems[0].what) from None
    try:
        call = Call.model_validate(said)
    except ValidationError as error:
        raise Wrong(f"it is no call of a listener: {error.errors()[0]['loc']}") from None
    fn = blocks.fns.get(call.fn_index)
    if fn is None or fn.fn is None:
        raise Wrong("there is no such listener")
    if len(call.data) != len(fn.inputs):
        raise Wrong(f"{fn.name} takes {len(fn.inputs)} values")
    for block, value in zip(fn.inputs, call.data, strict=True):
        if not fits(block, value):
            raise Wrong(f"{type(value).__name__} for a {type(block).__name__} of {fn.name}")
    if _names_a_file(call.event_data):
        raise Wrong(f"event_data of {fn.name}")
    return said


def fits(block: Any, value: Any) -> bool:
    """Whether a component may send this value; what it is worth there, the component itself checks."""
    if value is None:
        return True
    match block:
        case gr.Textbox():
            return isinstance(value, str) and len(value) <= MOST_TEXT
        case gr.Checkbox():
            return isinstance(value, bool)
        case gr.Dropdown(multiselect=True):
            return isinstance(value, list) and all(_is_choice(each) for each in value)
        case gr.Dropdown() | gr.Radio():
            return _is_choice(value)
        case gr.File() | gr.UploadButton():
            return all(_is_file(each) for each in (value if isinstance(value, list) else [value]))
        case _:  # states are kept here, and nothing else is sent
            return False


def _is_choice(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= MOST_TEXT)


def _is_file(value: Any) -> bool:
    """An upload as Gradio's script names it; whether it is one of this server, Gradio checks."""
    return isinstance(value, dict) and isinstance(value.get("path"), str) and isinstance(value.get("meta"), dict)


def _names_a_file(value: Any) -> bool:
    """Whether an event's named values hold a file anywhere, which Gradio would look for; no script of the page sends one."""
    if isinstance(value, dict):
        return "path" in value or any(map(_names_a_file, value.values()))
    return isinstance(value, list) and any(map(_names_a_file, value))
