"""Checks of the tokens, the initializers and the initial embedding of textual inversion, before a model is loaded."""

from dataclasses import replace
from pathlib import Path

from core.dataset.sources.image_info import about
from core.families.locate import family_of, model_path
from core.families.token_count import count_tokens, cut_at
from core.families.tokenizer import tokenizer_folder
from core.families.vocabulary import read_vocabulary
from core.formats.detect import identify
from core.formats.embedding_file import LAYERS, ONE, SDXL, read_embedding, read_shapes, tokens_in
from core.generation.model.embeddings import check_embedding, token_widths
from core.methods.kinds.embedding import START
from core.record.problems import Problem, ProblemsError, collected
from core.record.units import count
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.model import traits_of
from core.settings.rules.embedding import known_tokens, other_size


def problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of tokens that the model's tokenizer already has, of initializers that are too long, and of an embedding to start
    from that is missing, damaged or does not fit the settings."""
    problems = collected([], _known_tokens, job, workspace) or []
    if job.embedding.embedding_weights:
        return problems + (collected(problems, _initial_advice, job, workspace) or [])
    return problems + _initializer_advice(job)


def _known_tokens(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of tokens that the base model's tokenizer already has."""
    folder = tokenizer_folder(model_path(job.model.base_model, workspace))
    return known_tokens(job.embedding.words, read_vocabulary(folder).words)


def _initializer_advice(job: TrainJob) -> list[Problem]:
    """Return advice for each initializer that is longer than the number of vectors per token."""
    problems = []
    for word in filter(None, dict.fromkeys(job.embedding.init_words)):
        used, cut = cut_at(word, job.embedding.num_vectors_per_token)
        if cut:
            what = f"The initializer '{word}' is {count_tokens(word)} tokens, of which only '{used}' is used"
            fix = f"use {count(count_tokens(word), 'vector')} per token, or a shorter initializer"
            problems.append(Problem(what, "embedding.init_word", fix, "advice", code="embedding.initializer-cut"))
    return problems


def _initial_advice(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return advice about the tokens of an embedding to start from of which only the first is used. Raises ProblemsError for one that is
    missing, damaged or does not fit the settings."""
    path = model_path(str(job.embedding.embedding_weights), workspace, START)
    model = model_path(job.model.base_model, workspace)
    try:
        check_embedding(identify(path), path, family_of(model, job.model.family))
        _check_vectors(job, path, model)
        read_embedding(path)
    except ProblemsError as error:  # another kind of file; NaN or infinite vectors
        raise ProblemsError([replace(each, where=START) for each in error.problems]) from None
    what = "The embedding has {n}, of which only the first is used: {names}"
    tokens, fix = tokens_in(path), "save another one in a file of its own to start from it"
    return about(tokens, what, fix, "embedding.first-token", where=START, noun="token") if len(tokens) > 1 else []


def _check_vectors(job: TrainJob, path: Path, model: Path) -> None:
    """Raise ProblemsError if the tensor names or shapes of the embedding file `path` do not fit the training of `model`."""
    shapes, name = read_shapes(path), family_of(model, job.model.family)
    expected = LAYERS if job.embedding.extended else SDXL if traits_of(name).two_encoders else ONE
    keys = [key for key in expected if key in shapes]
    if not keys or (job.embedding.extended and len(keys) < len(expected)):
        what = f"The embedding contains {', '.join(list(shapes)[:3])}; this training needs {expected[0]} ..."
        fix = "choose an embedding of the same family and kind (XTI or not)"
        raise ProblemsError.one(what, START, fix, code="embedding.other-tensors")
    widths = token_widths(model)
    for key in keys:
        number = 0 if job.embedding.extended else expected.index(key)
        width = widths[number] if number < len(widths) else shapes[key][1]
        needed = (job.embedding.num_vectors_per_token, width)
        if shapes[key] != needed:
            raise ProblemsError([other_size(shapes[key], needed)])
