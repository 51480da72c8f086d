"""Profiles of ONNX models: JSON files in which users state properties that the model's file does not contain."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError

FILE = "profile.json"
Profile = TypeVar("Profile", bound=BaseModel)


def read_profile(path: Path, form: type[Profile], fix: str, code: str) -> Profile:
    """Read a profile and validate it with the pydantic model `form`. Raises ProblemsError with all errors in the file.
    fix, code: of these problems"""
    values = read_json_object(path, fix, max_bytes=100_000)
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise ProblemsError(
            Problem(
                f"'{'.'.join(map(str, each['loc']))}' of the profile: {each['msg'].removeprefix('Value error, ')[:200]}",
                str(path),
                fix,
                code=code,
            )
            for each in error.errors()
        ) from None
