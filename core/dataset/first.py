"""The first images of a dataset, for the page to show while all images are read."""

from collections.abc import Iterator

from core.dataset.captions.files import read_caption
from core.dataset.captions.pipeline import plain_caption
from core.dataset.report import Row
from core.dataset.sources.conditioning import mask_folders
from core.dataset.sources.files import is_label, printable
from core.dataset.sources.folders import Root, folder_of, roots_of
from core.dataset.sources.scan_builder import caption_endings
from core.dataset.sources.walk import File, first_files, headers, image_of
from core.record.cancel import CancelToken
from core.settings.dataset.concepts import Concept, concepts_of
from core.settings.job import TrainJob


def first_rows(job: TrainJob, most: int, cancel: CancelToken | None = None) -> list[Row]:
    """Return rows for the first `most` images, in the report's order, with size and caption.

    Bucket and tokens are not known yet. Stops at a folder whose images are listed in a metadata file; [] with a dataset class.
    """
    rows: list[Row] = []
    for concept in () if job.dataset.dataset_class else concepts_of(job):
        source, (path, _) = concept.source, folder_of(concept.source)
        if source.metadata_file or source.cache_info:
            break
        for root in roots_of(source, path)[0] if path else ():
            endings, excluded = caption_endings(concept), mask_folders(concept)
            files = first_files(root.path, most - len(rows), root.left_out, endings, excluded, source.recursive)
            rows += _rows([file for file in files if not is_label(file.path.name)], root, concept, cancel)
            if len(rows) >= most:
                return rows
    return rows


def _rows(files: list[File], root: Root, concept: Concept, cancel: CancelToken | None) -> Iterator[Row]:
    """Yield the row of each file, without bucket and tokens; for an unreadable file with the reason."""
    id = printable(root.path.name) or "images"
    for file, header in headers(files, cancel=cancel):
        if isinstance(header, str):
            yield Row((id, file.relative), file.path, why=header, readable=False)
            continue
        image = image_of(id, file, header, repeats=root.repeats, class_tokens=root.class_tokens, sidecars=file.sidecars)
        caption = read_caption(image, concept.captions)
        text = plain_caption(caption.text, concept.captions, image.class_tokens)
        size = (image.width, image.height)
        yield Row(image.key, image.path, size, caption=text, caption_path=caption.path, source=caption.source)
