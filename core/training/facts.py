"""The facts of a run that go into its files' metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.formats.hashes import model_hashes
from core.formats.lora_metadata import RunFacts, lora_metadata
from core.record.draws import address
from core.record.journal import read_lines
from core.training.dataset_facts import buckets_of, datasets_of, folders_of, tags_of

if TYPE_CHECKING:
    from core.training.run import Run


def file_metadata(run: Run) -> dict[str, str]:
    """ss_* and modelspec metadata of a file saved now."""
    source, vae = run.components.source, run.facts["vae_path"]
    # Without the token: "stop and save" has set it by now, and a hash that gave up here would lose the save.
    old_hash, sha256 = model_hashes(source, run.facts["memo"])
    vae_hash, vae_sha256 = model_hashes(vae, run.facts["memo"]) if vae else (None, None)
    size = run.job.dataset.resolution
    placed = run.plan.placed
    shown = [each for each, _ in run.plan.epochs.views_of(0)]
    regularisation = sum(each.concept.role == "regularisation" for each in shown)
    facts = RunFacts(
        session_id=address(0, "session", run.context.folder.name) % 2**32,
        started_at=_started(run),
        family=run.components.family,
        prediction=run.prediction,
        mixed_precision=run.precision.name,
        seed=run.seed,
        num_train_images=len(shown) - regularisation,
        num_reg_images=regularisation,
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
        dataset_dirs=folders_of(placed, regularisation=False),
        reg_dataset_dirs=folders_of(placed, regularisation=True),
        tag_frequency=tags_of(placed),
        bucket_info=buckets_of(shown),
        datasets=datasets_of(placed, shown),
    )
    return lora_metadata(run.job, facts)


def _started(run: Run) -> float:
    """When the run first began, also after it was continued."""
    first = next(read_lines(run.context.folder.journal_file), None)
    return float(first["time"]) if first else 0.0
