"""Families of hostile files by name: (make(folder, case) -> what is read, readers() -> {name: reader})."""

from tests.hostile import (
    adapter_files,
    cache_files,
    command_line,
    control_files,
    image_files,
    model_files,
    own_files,
    text_files,
    tool_files,
)

FAMILIES = model_files.FAMILIES | image_files.FAMILIES | text_files.FAMILIES | own_files.FAMILIES
FAMILIES |= (
    adapter_files.FAMILIES | cache_files.FAMILIES | command_line.FAMILIES | tool_files.FAMILIES | control_files.FAMILIES
)
