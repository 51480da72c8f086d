"""Check of the embedding that textual inversion starts from, before anything is loaded."""

from pathlib import Path

from core.families.locate import family_of, model_path
from core.formats.embedding_file import LAYERS, ONE, SDXL, read_shapes
from core.generation.model.embeddings import token_widths
from core.methods.kinds.embedding import START
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.model import traits_of


def problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Problems of the embedding to start from: missing, or with vectors that do not fit the settings."""
    start = job.embedding.embedding_weights
    if not start:
        return []
    try:
        path = model_path(start, workspace, START)
        _check_vectors(job, path, model_path(job.model.base_model, workspace))
    except ProblemsError as error:
        return error.problems
    return []


def _check_vectors(job: TrainJob, path: Path, model: Path) -> None:
    """Raise ProblemsError where the embedding's names, counts or widths do not fit the training."""
    shapes, name = read_shapes(path), family_of(model, job.model.family)
    wanted = LAYERS if job.embedding.extended else SDXL if traits_of(name).two_encoders else ONE
    present = [key for key in wanted if key in shapes]
    if not present or (job.embedding.extended and len(present) < len(wanted)):
        what = f"The embedding contains {', '.join(list(shapes)[:3])}; this training needs {wanted[0]} ..."
        fix = "choose an embedding of the same family and kind (XTI or not)"
        raise ProblemsError.one(what, START, fix, code="embedding.other-tensors")
    widths = token_widths(model)
    for key in present:
        number = 0 if job.embedding.extended else wanted.index(key)
        width = widths[number] if number < len(widths) else shapes[key][1]
        if shapes[key] != (job.embedding.num_vectors_per_token, width):
            in_file, count = "{} vectors of width {}".format(*shapes[key]), job.embedding.num_vectors_per_token
            what = f"The embedding contains {in_file}; this training needs {count} of width {width}"
            fix = "set the number of vectors of the file, or choose another file"
            raise ProblemsError.one(what, START, fix, code="embedding.other-size")
