"""What preparing a dataset writes besides our own caches."""

from __future__ import annotations

from core.settings.base import Settings, setting


class PrepareSettings(Settings):
    """Files for other programs."""

    write_metadata: str | None = setting(
        None,
        title="Metadata file",
        kohya="out_json",
        help="Writes a fine-tuning .json with each image's caption, tags and training size, as merge_captions and prepare_buckets_latents do. An earlier file is kept in the trash beside it.",
        names="path",
    )
    full_path: bool = setting(
        False,
        title="Whole paths",
        kohya="full_path",
        help="The metadata names images by their whole path; off, by their path below the folder without the ending.",
    )
    write_npz: bool = setting(
        False,
        title="Write .npz caches",
        kohya="cache_latents_to_disk",
        help="Writes the latents beside the images in the form sd-scripts reads. Files that are there already stay.",
    )
