"""Saved files also go to the Hugging Face hub."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class HubSettings(Settings):
    """Where to, and what. The token comes from HF_TOKEN or from the keys of this machine, never from a preset."""

    huggingface_repo_id: str | None = setting(
        None,
        max_length=200,
        title="Repository",
        kohya="huggingface_repo_id",
        help="owner/name. It is made if it is not there. Empty uploads nothing.",
        names="upload",
    )
    huggingface_repo_type: Literal["model", "dataset", "space"] = setting(
        "model", title="Kind of repository", kohya="huggingface_repo_type", help="What the repository is."
    )
    huggingface_path_in_repo: str = setting(
        "",
        max_length=500,
        title="Folder in it",
        kohya="huggingface_path_in_repo",
        help="Files go there under their own names. Empty is the top.",
    )
    huggingface_repo_visibility: Literal["private", "public"] = setting(
        "private",
        title="Who sees it",
        kohya="huggingface_repo_visibility",
        labels={"private": "only you", "public": "everyone"},
        help="Counts when the repository is made; one that is there stays as it is.",
    )
    async_upload: bool = setting(
        True,
        title="Train on while uploading",
        kohya="async_upload",
        help="Off waits for each upload. The end waits for all of them in any case.",
    )
    save_state_to_huggingface: bool = setting(
        False,
        title="States too",
        kohya="save_state_to_huggingface",
        help="Uploads what is needed to continue as well; it is two to three times as large.",
    )
