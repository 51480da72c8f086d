"""Uploads of saved files to the Hugging Face Hub."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class HubSettings(Settings):
    """Where to upload, and what. The token comes from HF_TOKEN or the keys saved on this machine, never from a preset."""

    huggingface_repo_id: str | None = setting(
        None,
        max_length=200,
        title="Repository",
        hint="off",
        kohya="huggingface_repo_id",
        help="owner/name; created if it does not exist. Empty uploads nothing.",
        names="upload",
    )
    huggingface_repo_type: Literal["model", "dataset", "space"] = setting(
        "model", title="Repository type", kohya="huggingface_repo_type", help="Model, dataset or Space."
    )
    huggingface_path_in_repo: str = setting(
        "",
        max_length=500,
        title="Path in repository",
        kohya="huggingface_path_in_repo",
        help="Folder in the repository that files are uploaded to. Empty is the root.",
    )
    huggingface_repo_visibility: Literal["private", "public"] = setting(
        "private",
        title="Repository visibility",
        kohya="huggingface_repo_visibility",
        labels={"private": "private", "public": "public"},
        help="Applies when the repository is created; an existing one is not changed.",
    )
    async_upload: bool = setting(
        True,
        title="Upload in background",
        kohya="async_upload",
        help="Training continues during uploads. Off waits for each one. The end of the run waits for all uploads either way.",
    )
    save_state_to_huggingface: bool = setting(
        False,
        title="Upload training states",
        kohya="save_state_to_huggingface",
        help="Also uploads training states, which are two to three times as large.",
    )

    def summary(self) -> str:
        name = self.huggingface_repo_id
        return f"to {name}, {self.huggingface_repo_visibility}" if name else "off"
