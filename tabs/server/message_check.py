"""Checks calls of event listeners, uploads and logins before Gradio reads them: invalid arguments get a 4xx response and one line in the
terminal."""

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
from tabs.server.limits import LOGIN, RateLimit
from tabs.server.request_check import UPLOAD, RequestAborted

EVENT_PATH = "/gradio_api/run/predict"
FORM_PATHS = (UPLOAD, LOGIN)
LOGGED_REFUSALS = (20 / 60, 20.0)  # lines in the terminal: per second, burst
MAX_VALUES = 100_000
MAX_TEXT = 1 << 20  # characters of a field
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
UPLOADED = re.compile(r"[0-9a-f]{64}/[^/\\]+", re.DOTALL)  # as Gradio stores it: the hash of the content and the name
_argument_errors: ContextVar[list[str] | None] = ContextVar("argument_errors", default=None)


Index = Annotated[int, Field(ge=0, lt=2**31)]


class Call(BaseModel):
    """The JSON body with which the page's script calls an event listener."""

    model_config = ConfigDict(extra="forbid", strict=True)
    data: list[Any]
    fn_index: Index
    session_hash: str = Field(pattern=f"^{SESSION.pattern}$")
    trigger_id: Index | None = None
    event_data: dict[str, Any] | None = None


class InvalidMessage(Exception):
    """Raised for a message that is refused; the text is the reason."""


class CheckedBlocks(gr.Blocks):
    """gr.Blocks that report values that a component refuses (an unknown choice, a file that was not uploaded) as invalid arguments."""

    def run_startup_events(self) -> None:
        """Start without Gradio's queue: no listener uses it, and its loop would wake a thousand times a second."""
        self.is_running = True
        self.create_limiter()

    async def preprocess_data(self, block_fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Preprocess a listener's arguments; an error is noted for `MessageCheck` and raised as gr.Error."""
        try:
            return await super().preprocess_data(block_fn, *args, **kwargs)
        except Exception as error:
            errors = _argument_errors.get()
            if errors is not None:
                errors.append(f"{type(error).__name__} in the arguments of {block_fn.name}")
            raise gr.Error("These arguments do not fit", print_exception=False) from None


class MessageCheck:
    """ASGI middleware that checks messages right before Gradio. blocks: () -> the page; log: prints a line."""

    def __init__(self, app: Any, blocks: Callable[[], gr.Blocks], log: Callable[[str], Any] = print):
        self.app, self.blocks, self.log = app, blocks, log
        self._log_limit = RateLimit(*LOGGED_REFUSALS)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Check calls of listeners and forms; pass other requests on."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == EVENT_PATH:
            await self._call(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].rstrip("/") in FORM_PATHS:
            await self._form(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:
        """Check the call of an event listener and pass it on; answer invalid arguments by 422."""
        body = await Request(scope, receive).body()
        try:
            body = with_uploads(parse_call(body, self.blocks()), self._folder()) or body
        except InvalidMessage as error:
            await self._refuse(scope, str(error), receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_checked() -> Any:
            return messages.pop() if messages else await receive()

        errors: list[str] = []
        token = _argument_errors.set(errors)
        try:
            response = await buffered_response(self.app, scope, receive_checked, send)
        finally:
            _argument_errors.reset(token)
        if response is None:
            return
        start, content = response
        if errors and start["status"] == 500:
            start["status"] = 422
            self._log(scope, errors[0])
        await send_response(send, start, content)

    async def _form(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass an upload or login on. A body that Gradio cannot read is answered by 400, one that cannot be stored by 507.

        The response to an upload names each file by its path below the upload folder.
        """
        try:
            response = await buffered_response(self.app, scope, receive, send)
        except (RequestAborted, ClientDisconnect):
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, OSError) else type(error).__name__
            await self._refuse(scope, reason, receive, send, 507 if isinstance(error, OSError) else 400)
            return
        if response is None:
            return
        start, content = response
        if scope["path"] == UPLOAD and start["status"] == 200:
            names = [name.removeprefix(self._folder()).replace(os.sep, "/") for name in json.loads(content)]
            content = json.dumps(names).encode()
        await send_response(send, start, content)

    def _folder(self) -> str:
        """Return Gradio's upload folder with a final separator. Browsers send and receive only paths below it."""
        return os.path.join(self.blocks().app.uploaded_file_dir, "")

    async def _refuse(self, scope: Any, reason: str, receive: Any, send: Any, status: int = 422) -> None:
        """Answer a request by an error and print the reason."""
        self._log(scope, reason)
        message = "The files could not be stored." if status == 507 else "These arguments do not fit."
        await JSONResponse({"detail": message, "error": message}, status)(scope, receive, send)

    def _log(self, scope: Any, reason: str) -> None:
        """Print one line about a refused request, at most as often as LOGGED_REFUSALS."""
        if self._log_limit.allows(1):
            self._log_limit.add(1)
            self.log(f"{time.strftime('%H:%M:%S')}  A request was refused: {scope['path'][:80]!a}: {reason[:200]}")


def with_uploads(message: dict[str, Any], folder: str) -> bytes | None:
    """Complete the paths of a message's uploaded files with `folder`, in place, and return it as JSON; None if it has no uploads."""
    values = [each for value in message["data"] for each in (value if isinstance(value, list) else [value])]
    files = [each for each in values if isinstance(each, dict) and UPLOADED.fullmatch(each["path"])]
    for file in files:
        file["path"] = os.path.join(folder, *file["path"].split("/"))
    return json.dumps(message).encode() if files else None


def parse_call(body: bytes, blocks: gr.Blocks) -> dict[str, Any]:
    """Parse the call of an event listener. Raises InvalidMessage for a body that the page's script would not send."""
    try:
        message = parse_json(body, "the message", max_values=MAX_VALUES)
    except ProblemsError as error:
        raise InvalidMessage(error.problems[0].what) from None
    try:
        call = Call.model_validate(message)
    except ValidationError as error:
        raise InvalidMessage(f"it is no call of a listener: {error.errors()[0]['loc']}") from None
    fn = blocks.fns.get(call.fn_index)
    if fn is None or fn.fn is None:
        raise InvalidMessage("there is no such listener")
    if len(call.data) != len(fn.inputs):
        raise InvalidMessage(f"{fn.name} takes {len(fn.inputs)} values")
    for block, value in zip(fn.inputs, call.data, strict=True):
        if not accepts(block, value):
            raise InvalidMessage(f"{type(value).__name__} for a {type(block).__name__} of {fn.name}")
    if _names_a_file(call.event_data):
        raise InvalidMessage(f"event_data of {fn.name}")
    return message


def accepts(block: Any, value: Any) -> bool:
    """Whether a component may send a value of this type. Whether a choice or file exists is checked by the component's preprocess."""
    if value is None:
        return True
    match block:
        case gr.Textbox():
            return isinstance(value, str) and len(value) <= MAX_TEXT
        case gr.Checkbox():
            return isinstance(value, bool)
        case gr.Dropdown(multiselect=True):
            return isinstance(value, list) and all(_is_choice(each) for each in value)
        case gr.Dropdown() | gr.Radio():
            return _is_choice(value)
        case gr.File() | gr.UploadButton():
            return all(_is_file(each) for each in (value if isinstance(value, list) else [value]))
        case _:  # a gr.State stays on the server, and no other component is an input
            return False


def _is_choice(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= MAX_TEXT)


def _is_file(value: Any) -> bool:
    """Whether a value has the form of Gradio's FileData. Gradio checks whether the file was uploaded to this server."""
    return isinstance(value, dict) and isinstance(value.get("path"), str) and isinstance(value.get("meta"), dict)


def _names_a_file(value: Any) -> bool:
    """Whether event data has a key "path" at any depth: Gradio would open that file, and the page's script sends none."""
    if isinstance(value, dict):
        return "path" in value or any(map(_names_a_file, value.values()))
    return isinstance(value, list) and any(map(_names_a_file, value))
