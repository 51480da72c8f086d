"""The facts of a run that go into its files' metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.formats.lora_file import RunFacts, lora_metadata

if TYPE_CHECKING:
    from core.training.run import Run


def file_metadata(run: Run) -> dict[str, str]:
    """ss_* and modelspec metadata for a file saved now."""
    raise_later = run
    return lora_metadata(run.job, RunFacts())
