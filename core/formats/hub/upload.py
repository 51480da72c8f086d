"""Uploads files to the Hugging Face hub. Access is checked before a training starts; a failed upload is logged and stops nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record.problems import Problem

if TYPE_CHECKING:
    from core.settings.hub import HubSettings

LOOK_SECONDS = 8.0  # to wait for the hub before a start
WHERE = "hub.huggingface_repo_id"
Say = Callable[[str, str, str], None]  # text, level, fix


def path_in_repo(settings: HubSettings, name: str) -> str:
    """Return the path of file `name` in the repository: below the folder of the settings, if one is set."""
    folder = settings.huggingface_path_in_repo.replace("\\", "/").strip("/")
    return f"{folder}/{name}" if folder else name


def missing_token_problem(settings: HubSettings, token: str | None) -> Problem | None:
    """Return the problem that an upload is set up but `token` is missing; None if there is a token or nothing to upload."""
    if not settings.huggingface_repo_id or token:
        return None
    fix = "store a Hugging Face token in Tools or set HF_TOKEN, or leave the repository empty"
    return Problem("Uploads to the hub need a token", WHERE, fix, code="hub.no-token")


def upload_problem(settings: HubSettings, token: str | None) -> Problem | None:
    """Ask the hub, without changing anything there, whether an upload would be accepted; return the problem, or None.

    An error if the hub refuses the token or repository; advice if the hub does not answer within LOOK_SECONDS.
    """
    if not settings.huggingface_repo_id or not token:
        return missing_token_problem(settings, token)
    answers: list[Problem | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(settings, token)), daemon=True, name="hub")
    thread.start()
    thread.join(LOOK_SECONDS)
    return answers[0] if answers else _unreachable(f"no answer within {LOOK_SECONDS:g} seconds")


def _unreachable(why: str) -> Problem:
    """Return the advice that the hub does not answer because of `why`."""
    fix = "check the connection; training starts anyway, and every file stays in the run folder"
    what = f"The hub cannot be reached ({why}), so uploads may fail"
    return Problem(what, WHERE, fix, level="advice", code="hub.unreachable")


def _ask(settings: HubSettings, token: str) -> Problem | None:
    """Ask the hub whether this token may write to the repository; return the problem, or None."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    repository = str(settings.huggingface_repo_id)
    api = HfApi(token=token)
    try:
        account = api.whoami()
        try:
            api.auth_check(repository, repo_type=settings.huggingface_repo_type, write=True)
            return None
        except RepositoryNotFoundError:
            return _creation_problem(repository, account)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status == 401:
            fix = "create a new token with write access at huggingface.co/settings/tokens and store it in Tools"
            what = "The hub does not accept the token: it is wrong or has expired"
            return Problem(what, WHERE, fix, code="hub.bad-token")
        if status == 403:
            fix = "use a token with write access to it, or another repository"
            return Problem(f"The token may not write to {repository}", WHERE, fix, code="hub.no-write-access")
        return _unreachable(
            f"it answered {status}" if status else (str(error).strip().splitlines() or [repr(error)])[0]
        )


def _creation_problem(repository: str, account: dict[str, Any]) -> Problem | None:
    """Return why this account cannot create the missing `repository` at the first upload; None if it can.
    account: the answer of `HfApi.whoami`"""
    names = [str(account.get("name", "")), *(str(org.get("name", "")) for org in account.get("orgs") or [])]
    if repository.split("/")[0].lower() not in [name.lower() for name in names]:
        what = f"{repository} does not exist or is not accessible with this token, and it belongs to {names[0]}"
        fix = f"write {names[0]}/{repository.split('/')[-1]}, or use the owner's token"
        return Problem(what, WHERE, fix, code="hub.other-owner")
    if (account.get("auth") or {}).get("accessToken", {}).get("role") == "read":
        fix = "create a token with write access at huggingface.co/settings/tokens"
        what = f"The token is read-only, so {repository} cannot be created"
        return Problem(what, WHERE, fix, code="hub.read-only-token")
    return None


class Uploads:
    """Uploads the files of one run in order in a background thread; does nothing if no repository is set."""

    def __init__(self, settings: HubSettings, token: str | None, say: Say):
        self._settings, self._token, self._say = settings, token, say
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload") if settings.huggingface_repo_id else None
        self._pending: list[Future[None]] = []
        self._api: Any = None

    def check_in_background(self) -> None:
        """Ask the hub in the background whether uploads will be accepted, and report a problem as a warning."""
        if self._pool is not None:
            self._pool.submit(self._report_problem)

    def _report_problem(self) -> None:
        """Ask the hub whether uploads will be accepted, and report a problem as a warning."""
        problem = upload_problem(self._settings, self._token)
        if problem is not None:
            self._say(problem.what, "warning", problem.fix)

    def send(self, path: Path, wait: bool = False) -> None:
        """Queue the upload of a file or a folder; do nothing if no repository is set. With `wait` or without `async_upload`, return when
        all queued uploads are done."""
        if self._pool is None:
            return
        self._pending = [each for each in self._pending if not each.done()]
        self._pending.append(self._pool.submit(self._upload, path))
        if wait or not self._settings.async_upload:
            self.finish()

    def send_state(self, path: Path) -> None:
        """Upload a training state, if the settings say so."""
        if self._settings.save_state_to_huggingface:
            self.send(path)

    def finish(self) -> None:
        """Wait for all pending uploads."""
        for each in self._pending:
            each.result()
        self._pending = []

    def close(self) -> None:
        """Wait for all pending uploads and end the background thread."""
        if self._pool is not None:
            self.finish()
            self._pool.shutdown()
            self._pool = None

    def _upload(self, path: Path) -> None:
        """Upload a file or folder now; report success or failure, and raise nothing."""
        repository = str(self._settings.huggingface_repo_id)
        try:
            api = self._connected(repository)
            target = path_in_repo(self._settings, path.name)
            about = {"repo_id": repository, "repo_type": self._settings.huggingface_repo_type, "path_in_repo": target}
            if path.is_dir():
                api.upload_folder(folder_path=str(path), **about)
            else:
                api.upload_file(path_or_fileobj=str(path), **about)
            self._say(f"Uploaded {target} to {repository}", "info", "")
        except Exception as error:
            lines = str(error).strip().splitlines()
            fix = (
                "set HF_TOKEN or store a Hugging Face token in Tools"
                if self._token is None
                else "the local file is complete; upload it by hand"
            )
            self._say(
                f"{path.name} could not be uploaded to {repository}: {lines[0] if lines else error!r}", "warning", fix
            )

    def _connected(self, repository: str) -> Any:
        """Return the hub's API; on the first call, create the repository if it does not exist."""
        if self._api is None:
            from huggingface_hub import HfApi

            api = HfApi(token=self._token or False)
            api.create_repo(
                repository,
                repo_type=self._settings.huggingface_repo_type,
                private=self._settings.huggingface_repo_visibility == "private",
                exist_ok=True,
                **({"space_sdk": "static"} if self._settings.huggingface_repo_type == "space" else {}),
            )
            self._api = api
        return self._api
