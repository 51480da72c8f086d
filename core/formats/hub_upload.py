"""Files to the Hugging Face hub. What fails there is said, and ends no training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.settings.hub import HubSettings

Say = Callable[[str, str, str], None]  # text, level, fix


def place_in_repo(settings: HubSettings, name: str) -> str:
    """Where a file of this name goes: under its own name in the folder of the settings."""
    folder = settings.huggingface_path_in_repo.replace("\\", "/").strip("/")
    return f"{folder}/{name}" if folder else name


class Uploads:
    """Uploads of one run, one after the other, beside the training. Does nothing without a repository."""

    def __init__(self, settings: HubSettings, token: str | None, say: Say, endpoint: str | None = None):
        self._settings, self._token, self._say, self._endpoint = settings, token, say, endpoint
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload") if settings.huggingface_repo_id else None
        self._waiting: list[Future[None]] = []
        self._api: Any = None

    def send(self, path: Path, wait: bool = False) -> None:
        """Upload a file or a folder. wait: come back when it and all before it are there."""
        if self._pool is None:
            return
        self._waiting = [each for each in self._waiting if not each.done()]
        self._waiting.append(self._pool.submit(self._upload, path))
        if wait or not self._settings.async_upload:
            self.finish()

    def send_state(self, path: Path) -> None:
        if self._settings.save_state_to_huggingface:
            self.send(path)

    def finish(self) -> None:
        """Wait for everything that is on its way."""
        for each in self._waiting:
            each.result()
        self._waiting = []

    def close(self) -> None:
        if self._pool is not None:
            self.finish()
            self._pool.shutdown()
            self._pool = None

    def _upload(self, path: Path) -> None:
        repository = str(self._settings.huggingface_repo_id)
        try:
            api = self._connected(repository)
            place = place_in_repo(self._settings, path.name)
            about = {"repo_id": repository, "repo_type": self._settings.huggingface_repo_type, "path_in_repo": place}
            if path.is_dir():
                api.upload_folder(folder_path=str(path), **about)
            else:
                api.upload_file(path_or_fileobj=str(path), **about)
            self._say(f"Uploaded {place} to {repository}", "info", "")
        except Exception as error:
            words = str(error).strip().splitlines()
            fix = (
                "set HF_TOKEN, or give the key of the hub"
                if self._token is None
                else "it is whole here; upload it by hand"
            )
            self._say(
                f"{path.name} could not be uploaded to {repository}: {words[0] if words else error!r}", "warning", fix
            )

    def _connected(self, repository: str) -> Any:
        """The hub, with the repository made where it was not there."""
        if self._api is None:
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._endpoint, token=self._token or False)
            api.create_repo(
                repository,
                repo_type=self._settings.huggingface_repo_type,
                private=self._settings.huggingface_repo_visibility == "private",
                exist_ok=True,
                **({"space_sdk": "static"} if self._settings.huggingface_repo_type == "space" else {}),
            )
            self._api = api
        return self._api
