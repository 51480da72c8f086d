"""Uploads of saved files to the Hugging Face Hub."""

from typing import Literal

from core.settings.base import Settings, kohya_setting


class HubSettings(Settings):
    """Uploads to the Hugging Face Hub. The token comes from HF_TOKEN or the keys saved on this machine, never from a preset."""

    huggingface_repo_id: str | None = kohya_setting(
        None,
        max_length=200,
        title="Repository",
        hint="off",
        help="owner/name; created if it does not exist. Empty uploads nothing.",
        names="upload",
    )
    huggingface_repo_type: Literal["model", "dataset", "space"] = kohya_setting(
        "model", title="Repository type", help="Model, dataset or Space."
    )
    huggingface_path_in_repo: str = kohya_setting(
        "",
        max_length=500,
        title="Path in repository",
        help="Folder in the repository that files are uploaded to. Empty is the root.",
    )
    huggingface_repo_visibility: Literal["private", "public"] = kohya_setting(
        "private",
        title="Repository visibility",
        help="Applies when the repository is created; an existing one is not changed.",
    )
    async_upload: bool = kohya_setting(
        True,
        title="Upload in background",
        help="Training continues during uploads. Off waits for each one. The end of the run waits for all uploads either way.",
    )
    save_state_to_huggingface: bool = kohya_setting(
        False,
        title="Upload training states",
        help="Also uploads training states, which are two to three times as large.",
    )

    def summary(self) -> str:
        """Return repository and visibility in one line."""
        name = self.huggingface_repo_id
        return f"to {name}, {self.huggingface_repo_visibility}" if name else "off"
