"""Interfaces that forms use: the page and other forms."""

import os
from collections.abc import Mapping
from typing import Any, Protocol

from core.record.workspace import Workspace
from core.settings.base import Declared
from core.settings.presets.files import PresetStore
from tabs.form.project import Project
from tabs.roots import Roots


class Form(Protocol):
    """A form with fields for model files. known: its settings by name; family_for: (name) -> family that the field requires, or ""."""

    @property
    def known(self) -> Mapping[str, Declared]: ...

    def family_for(self, name: str) -> str: ...


class FormPage(Protocol):
    """The attributes of Page that forms use."""

    workspace: Workspace
    project: Project
    presets: PresetStore
    roots: Roots
    picker: Any
    engine: Any

    def file_url(self, path: str | os.PathLike) -> str: ...

    def thumb_url(self, path: str | os.PathLike, size: int = 256) -> str: ...

    def say(self, kind: str, text: str = "", **more: Any) -> None: ...
