"""What preparing a dataset writes besides Atelier's caches."""

from __future__ import annotations

from core.settings.base import Settings, kohya_setting, setting


class PrepareSettings(Settings):
    """Files for other programs."""

    write_metadata: str | None = setting(
        None,
        title="Metadata file",
        kohya="out_json",
        help="Writes a fine-tuning .json with each image's caption, tags and training size, as merge_captions and prepare_buckets_latents do. An existing file is moved to the trash folder beside it.",
        names="path",
    )
    full_path: bool = kohya_setting(
        False,
        title="Full paths",
        help="Lists images in the metadata by full path; off, by path within the folder without extension.",
    )
    write_npz: bool = setting(
        False,
        title="Write .npz caches",
        kohya="cache_latents_to_disk",
        help="Writes latents beside the images in sd-scripts' format. Existing files are kept.",
    )
