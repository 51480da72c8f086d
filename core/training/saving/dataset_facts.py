"""A file's metadata about the images it was trained on, in sd-scripts' form (reference: section 2.6)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from core.settings.concepts import own_settings

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed
    from core.settings.concepts import Concept


def folders_of(placed: Iterable[Placed], *, regularization: bool | None = None) -> dict[str, Any]:
    """{folder: {"n_repeats", "img_count"}} of regularization folders, of the others, or (None) of all."""
    found: dict[str, Any] = {}
    for each in _first_sizes(placed):
        if regularization is not None and (each.concept.role == "regularization") is not regularization:
            continue
        entry = found.setdefault(each.image.source, {"n_repeats": each.repeats, "img_count": 0})
        entry["img_count"] += 1
    return found


def tags_of(placed: Iterable[Placed]) -> dict[str, dict[str, int]]:
    """{folder: {tag: images}}: captions cut at commas, in lower case, each tag once an image."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in _first_sizes(placed):
        tags = {tag.strip().lower() for tag in each.caption.text.split(",")}
        found[each.image.source].update(tags - {""})
    return {folder: dict(counts) for folder, counts in found.items()}


def buckets_of(shown: Sequence[Placed]) -> dict[str, Any]:
    """Buckets with their views in an epoch, and the mean difference of aspect ratios over the images."""
    counts = Counter(each.placement.bucket for each in shown)
    once = {each.key: each for each in shown}.values()
    errors = [
        abs(each.placement.bucket[0] / each.placement.bucket[1] - each.image.width / each.image.height) for each in once
    ]
    buckets = {
        str(number): {"resolution": list(size), "count": counts[size]} for number, size in enumerate(sorted(counts))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / max(len(errors), 1)}


def datasets_of(placed: Sequence[Placed], shown: Sequence[Placed]) -> list[dict[str, Any]]:
    """One entry for each set of folders that share batches and sizes; none where no folder has settings of its own."""
    concepts = {each.concept.number: each.concept for each in placed}
    if not any(own_settings(concept.source) for concept in concepts.values()):
        return []
    groups: defaultdict[tuple, list[Concept]] = defaultdict(list)
    for concept in concepts.values():
        groups[concept.batch_group, concept.images.resolution].append(concept)
    return [_dataset(group, placed, shown) for group in groups.values()]


def _dataset(group: Sequence[Concept], placed: Sequence[Placed], shown: Sequence[Placed]) -> dict[str, Any]:
    numbers = {concept.number for concept in group}
    own = [each for each in placed if each.concept.number in numbers]
    views = [each for each in shown if each.concept.number in numbers]
    regularization = sum(each.concept.role == "regularization" for each in views)
    images = group[0].images
    size = images.resolution
    return {
        "is_dreambooth": all(concept.source.metadata_file is None for concept in group),
        "batch_size_per_device": images.train_batch_size,
        "num_train_images": len(views) - regularization,
        "num_reg_images": regularization,
        "resolution": list(size) if isinstance(size, tuple) else [size, size],
        "enable_bucket": images.enable_bucket,
        "min_bucket_reso": images.min_bucket_reso,
        "max_bucket_reso": images.max_bucket_reso,
        "tag_frequency": tags_of(own),
        "bucket_info": buckets_of(views),
        "subsets": [_subset(concept, own) for concept in group],
    }


def _subset(concept: Concept, placed: Sequence[Placed]) -> dict[str, Any]:
    own = [each for each in _first_sizes(placed) if each.concept.number == concept.number]
    captions, images = concept.captions, concept.images
    return {
        "img_count": len(own),
        "num_repeats": own[0].repeats if own else 1,
        "color_aug": images.color_aug,
        "flip_aug": images.flip_aug,
        "random_crop": images.random_crop,
        "shuffle_caption": captions.shuffle_caption,
        "keep_tokens": captions.keep_tokens,
        "keep_tokens_separator": captions.keep_tokens_separator,
        "secondary_separator": captions.secondary_separator,
        "enable_wildcard": captions.enable_wildcard,
        "caption_prefix": captions.caption_prefix,
        "caption_suffix": captions.caption_suffix,
        "caption_dropout_rate": captions.caption_dropout_rate,
        "caption_dropout_every_n_epochs": captions.caption_dropout_every_n_epochs,
        "caption_tag_dropout_rate": captions.caption_tag_dropout_rate,
        "token_warmup_min": captions.token_warmup_min,
        "token_warmup_step": captions.token_warmup_step,
        "image_dir": own[0].image.source if own else "",
        "class_tokens": own[0].image.words if own else None,
        "is_reg": concept.role == "regularization",
    }


def _first_sizes(placed: Iterable[Placed]) -> list[Placed]:
    """Each image once, however many resolutions it trains at."""
    return [each for each in placed if not each.variant]
