"""The facts of a run that go into its files' metadata."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from core.dataset.captions import split_tags
from core.formats.hashes import model_hashes
from core.formats.lora_metadata import RunFacts, lora_metadata
from core.record.draws import address
from core.record.journal import read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.dataset.batches import Placed
    from core.training.run import Run


def file_metadata(run: Run) -> dict[str, str]:
    """ss_* and modelspec metadata of a file saved now."""
    source, vae = run.components.source, run.facts["vae_path"]
    # Without the token: "stop and save" has set it by now, and a hash that gave up here would lose the save.
    old_hash, sha256 = model_hashes(source, run.facts["memo"])
    vae_hash, vae_sha256 = model_hashes(vae, run.facts["memo"]) if vae else (None, None)
    size = run.job.dataset.resolution
    placed = run.plan.placed
    facts = RunFacts(
        session_id=address(0, "session", run.context.folder.name) % 2**32,
        started_at=_started(run),
        family=run.components.family,
        prediction=run.prediction,
        mixed_precision=run.precision.name,
        seed=run.seed,
        num_train_images=sum(each.repeats for each in placed),
        num_batches_per_epoch=run.plan.epochs.batches_in(0),
        num_epochs=run.plan.epoch_of(run.total - 1) + 1,
        epoch=run.plan.epoch_of(run.state.step),
        step=run.state.step,
        max_train_steps=run.total,
        resolution=size if isinstance(size, tuple) else (size, size),
        base_model_name=source.name,
        base_model_hash=old_hash,
        base_model_sha256=sha256,
        vae_name=vae.name if vae else None,
        vae_hash=vae_hash,
        vae_sha256=vae_sha256,
        dataset_dirs=_folders(placed),
        tag_frequency=_tags(placed),
        bucket_info=_buckets(placed),
    )
    return lora_metadata(run.job, facts)


def _started(run: Run) -> float:
    """When the run first began, also after it was continued."""
    first = next(read_lines(run.context.folder.journal_file), None)
    return float(first["time"]) if first else 0.0


def _folders(placed: Sequence[Placed]) -> dict[str, Any]:
    """{folder: {"n_repeats", "img_count"}}."""
    found: dict[str, Any] = {}
    for each in placed:
        entry = found.setdefault(each.picture.source, {"n_repeats": each.repeats, "img_count": 0})
        entry["img_count"] += 1
    return found


def _tags(placed: Sequence[Placed]) -> dict[str, dict[str, int]]:
    """{folder: {tag: pictures}}: captions cut at commas, in lower case, each tag once a picture."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in placed:
        _, tags = split_tags(each.caption.text, ",", 0)
        found[each.picture.source].update({tag.lower() for tag in tags if tag})
    return {folder: dict(counts) for folder, counts in found.items()}


def _buckets(placed: Sequence[Placed]) -> dict[str, Any]:
    """Buckets with their pictures (with repeats), and the mean difference of aspect ratios."""
    counts: Counter[tuple[int, int]] = Counter()
    errors = []
    for each in placed:
        width, height = each.placement.bucket
        counts[(width, height)] += each.repeats
        errors.append(abs(width / height - each.picture.width / each.picture.height))
    buckets = {
        str(number): {"resolution": list(size), "count": counts[size]} for number, size in enumerate(sorted(counts))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / max(len(errors), 1)}
