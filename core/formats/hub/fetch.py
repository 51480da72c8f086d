"""Downloads one file from a web server: resumes, verifies the hash and format, and only then renames it to its final name.

Next to the target are `<name>.part` with the bytes so far and `<name>.part.json` with the URL, ETag and SHA-256 they belong to.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.tensors.header import check_format
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.space import require_space

if TYPE_CHECKING:
    from core.record.cancel import CancelToken

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 15.0
TRIES = 6  # in a row without receiving a byte
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between them; a server's Retry-After counts up to the longest
SHA256 = re.compile(r"[0-9a-f]{64}")

OnBytes = Callable[[int, int], None]  # bytes so far, total bytes (0 if unknown)


@dataclass(frozen=True)
class Remote:
    """A file on a web server. `size` (bytes) and `sha256` are None if they are unknown before the request."""

    url: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class FetchError(Exception):
    """A failed download.

    reason       the cause, as a clause after "could not be downloaded:"
    advice       what the user can do; "" if only a manual download helps
    retriable    whether a retry may help, after `retry_after` seconds
    """

    def __init__(self, reason: str, advice: str = "", retriable: bool = False, retry_after: float = 0.0):
        super().__init__(reason)
        self.reason, self.advice, self.retriable, self.retry_after = reason, advice, retriable, retry_after


AGAIN = "try again: it resumes where it stopped"


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise ProblemsError if `needed` bytes do not fit on the disk of `folder`. `what` names the download in the message."""
    fix = "free some space, or start with --models and a folder on another disk"
    require_space(folder, needed, f"Downloading {what}", fix)


def partial_path(path: Path) -> Path:
    """Return the path of the partial download of `path`."""
    return path.with_name(path.name + ".part")


def partial_bytes(path: Path) -> int:
    """Return the number of bytes of `path` downloaded so far."""
    try:
        return partial_path(path).stat().st_size
    except OSError:
        return 0


def remove_partial(path: Path) -> None:
    """Delete the partial download of `path`."""
    for each in (partial_path(path), _note_path(path)):
        atomic.remove(each)


def _note_path(path: Path) -> Path:
    """Return the path of the JSON file that describes the partial download of `path`."""
    return path.with_name(path.name + ".part.json")


def fetch(remote: Remote, path: Path, on_bytes: OnBytes, cancel: CancelToken | None = None) -> str:
    """Download a file to `path` and return its SHA-256.

    Raises FetchError; ProblemsError if the content is not in the format of the file's name, or the disk is too small; Cancelled, which
    keeps the partial download.
    """
    return _Transfer(remote, path, on_bytes, cancel).run()


class _Transfer:
    """One download, over as many requests as needed."""

    def __init__(self, remote: Remote, path: Path, on_bytes: OnBytes, cancel: CancelToken | None):
        self.remote, self.path, self.on_bytes, self.cancel = remote, path, on_bytes, cancel
        self.part, self.note = partial_path(path), _note_path(path)
        self.received, self.total, self.etag = 0, remote.size or 0, ""  # received: bytes in the partial file
        self.answered = False  # whether the server sent anything in this attempt
        self.expected = remote.sha256
        self.digest = hashlib.sha256()

    def run(self) -> str:
        """Download the file and return its SHA-256. Raises as `fetch`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._resume_part()
        failures = 0
        while True:
            before = self.received
            try:
                if self._request():
                    return self._finish()
                failure = FetchError("the server's answers are inconsistent", AGAIN)
            except FetchError as error:
                if not error.retriable:
                    raise
                failure = error
            except Exception as error:
                if not _is_connection_error(error):
                    raise
                if not self.answered:
                    raise FetchError("the server does not answer") from error
                failure = FetchError(f"the connection ended after {self._so_far()}", AGAIN)
            failures = 0 if self.received > before else failures + 1
            if failures >= TRIES:
                raise failure
            self._wait(max(failure.retry_after, FIRST_WAIT * 2**failures if failures else 0.0))

    def _so_far(self) -> str:
        """Return "1,000 of 2,000 bytes of model.safetensors", for messages."""
        of_all = f" of {self.total:,}" if self.total else ""
        return f"{self.received:,}{of_all} bytes of {self.path.name}"

    def _wait(self, seconds: float) -> None:
        """Wait at most LONGEST_WAIT seconds. Raises Cancelled when canceled."""
        end = time.monotonic() + min(seconds, LONGEST_WAIT)
        while (remaining := end - time.monotonic()) > 0:
            self._check_cancel()
            time.sleep(min(remaining, 0.1))

    def _check_cancel(self) -> None:
        """Raise Cancelled if the download was canceled."""
        if self.cancel is not None:
            self.cancel.check()

    def _resume_part(self) -> None:
        """Load the state of a partial download from the same URL and hash it; delete a partial download of anything else."""
        try:
            note = read_json_object(self.note)
            same = note["url"] == self.remote.url and note["sha256"] == (self.remote.sha256 or "")
            self.etag = str(note["etag"])
        except (ProblemsError, KeyError):
            same = False
        if not same or not self.part.is_file():
            self._start_over()
            return
        with open(self.part, "rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                self._check_cancel()
                self.digest.update(chunk)
                self.received += len(chunk)
        self.on_bytes(self.received, self.total)

    def _start_over(self) -> None:
        """Delete the partial download and forget its bytes."""
        remove_partial(self.path)
        self.received, self.etag, self.digest = 0, "", hashlib.sha256()

    def _request(self) -> bool:
        """Request the missing bytes and append them to the partial file. Return whether the file is complete. Raises FetchError for an HTTP
        error; also as `fetch`."""
        from huggingface_hub.utils import get_session

        self._check_cancel()
        # Ranges and sizes refer to the stored bytes, so they must not be compressed.
        headers = {**self.remote.headers, "Accept-Encoding": "identity"}
        if self.received:
            headers |= {"Range": f"bytes={self.received}-"} | ({"If-Range": self.etag} if self.etag else {})
        with get_session().stream("GET", self.remote.url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
            self.answered = True
            if response.status_code == 416 and self.received:
                return self._beyond_the_end(response)
            if response.status_code not in (200, 206):
                raise _refusal(response)
            self._read_headers(response)
            if not self._continues(response):
                return False
            require_room(self.path.parent, max(self.total - self.received, 0), self.path.name)
            self._write_note()
            self._write(response)
        return not self.total or self.received >= self.total

    def _beyond_the_end(self, response: Any) -> bool:
        """Handle status 416: return True if the partial file is complete; otherwise delete it and return False."""
        total = response.headers.get("content-range", "").rpartition("/")[2]
        if total == str(self.received):
            return True
        self._start_over()
        return False

    def _read_headers(self, response: Any) -> None:
        """Store the expected hash. Raises FetchError for a web page, or if the server states another SHA-256."""
        if "text/html" in response.headers.get("content-type", ""):
            raise FetchError("the link leads to a web page, not to a file", "use the link of the file itself")
        stated = _stated_sha256(response)
        if stated and self.remote.sha256 and stated != self.remote.sha256:
            raise FetchError(
                f"the server states another SHA-256 ({stated[:10]}...) than expected for {self.path.name}",
                "do not use it; download the file elsewhere",
            )
        self.expected = self.remote.sha256 or stated

    def _continues(self, response: Any) -> bool:
        """Return whether the body can be written: it continues the partial file or is the whole file. Otherwise delete the partial file."""
        etag = _strong_etag(response)
        length = response.headers.get("content-length", "")
        if response.status_code == 206:
            start, total = _content_range(response)
            if start != self.received or (self.etag and etag and etag != self.etag):
                self._start_over()
                return False
            self.total = total or self.total
        else:
            if self.received:
                self._start_over()
            self.total = int(length) if length.isdecimal() else 0
        self.etag = etag
        return True

    def _write_note(self) -> None:
        """Write the JSON file that tells which file the partial download belongs to."""
        facts = {"url": self.remote.url, "etag": self.etag, "sha256": self.remote.sha256 or ""}
        atomic.write_json(self.note, facts)

    def _write(self, response: Any) -> None:
        """Append the body to the partial file. A body of unknown length may never end, so free space is checked as the file grows."""
        with open(self.part, "ab" if self.received else "wb") as handle:
            for chunk in response.iter_raw():
                self._check_cancel()
                handle.write(chunk)
                self.digest.update(chunk)
                self.received += len(chunk)
                self.on_bytes(self.received, self.total)
                if not self.total:
                    if self.remote.size and self.received > self.remote.size:
                        return  # longer than the file
                    require_room(self.path.parent, CHUNK_BYTES, self.path.name)

    def _finish(self) -> str:
        """Verify hash, size and format, rename the file to its final name and return its SHA-256.

        Raises FetchError for a damaged file and ProblemsError for a wrong format; both delete the partial file.
        """
        digest = self.digest.hexdigest()
        size = self.remote.size if self.remote.size and not self.expected else self.total
        if (self.expected and digest != self.expected) or (size and size != self.received):
            self._start_over()
            raise FetchError(f"{self.path.name} arrived damaged and was removed", "try again")
        if not self.received:
            self.part.touch()
        self._check_format()
        atomic.sync_file(self.part)
        atomic.replace(self.part, self.path)
        atomic.remove(self.note)
        return digest

    def _check_format(self) -> None:
        """Raise ProblemsError, and delete the partial file, if its content does not have the format of the file's name."""
        try:
            check_format(self.part, self.path.name)
        except ProblemsError as error:
            self._start_over()
            raise ProblemsError([replace(each, where=self.path.name) for each in error.problems]) from error


def _is_connection_error(error: Exception) -> bool:
    """Return whether the HTTP client failed to connect or lost the connection, for any client that huggingface_hub uses."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _refusal(response: Any) -> FetchError:
    """Return the FetchError of an HTTP status that is not a success."""
    status = response.status_code
    reasons = {
        401: ("the server asks for a login (401)", "store a Hugging Face token in Tools or set HF_TOKEN"),
        403: (
            "the server does not allow it (403)",
            "accept the terms on its page, then store a Hugging Face token in Tools or set HF_TOKEN",
        ),
        404: ("the file does not exist (404)", ""),
        410: ("the file no longer exists (410)", ""),
        429: ("the server asks to slow down (429)", f"wait a few minutes, then {AGAIN}"),
    }
    retriable = status in (408, 425, 429) or status >= 500
    reason, advice = reasons.get(status, (f"the server answered {status}", AGAIN if retriable else ""))
    later = response.headers.get("retry-after", "")
    return FetchError(reason, advice, retriable, float(later) if later.isdecimal() else 0.0)


def _stated_sha256(response: Any) -> str | None:
    """Return the SHA-256 in the hub's header `x-linked-etag`, also of a redirect; None without one."""
    for each in (*response.history, response):
        etag = each.headers.get("x-linked-etag", "").strip('"')
        if SHA256.fullmatch(etag):
            return etag
    return None


def _strong_etag(response: Any) -> str:
    """Return the ETag if it is a strong one, else "": range requests need equal bytes, which a weak ETag does not guarantee."""
    etag = response.headers.get("etag", "")
    return "" if etag.startswith("W/") else etag


def _content_range(response: Any) -> tuple[int, int]:
    """Parse Content-Range into (first byte, total bytes): (-1, 0) if it is missing or malformed, total 0 if unknown."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", "").strip())
    if match is None:
        return -1, 0
    return int(match[1]), int(match[2]) if match[2].isdecimal() else 0
