"""ControlNets in Generate: a card for each with its control image, and the field that adds one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.control.hints import make_hint, preprocessors
from core.generation.control_files import find_control_net
from core.generation.image_metadata import portable_name
from core.generation.initial import CONTROL, opened
from core.generation.model_index import facts_of_file
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path
from core.settings.base import Declared
from core.settings.generation.controls import ControlUse
from tabs.context import ASKING, Page
from tabs.dataset.mask_painting import png_address
from tabs.form.model_lists import badges
from tabs.form.own_settings import changed_values, entries, field
from tabs.form.picker import misfit
from tabs.form.plain_presets import PlainForm, Values
from tabs.generate import form
from tabs.generate.painting import Painting
from tabs.generate.panel import model_of
from tabs.markup import button, esc, middle
from tabs.server.browsers import Browser

PARTS: dict[str, Declared] = entries(ControlUse, "net")
SHOWN, DETAILS = ("image", "weight", "start_at", "end_at", "preprocessor"), ("mode", "fit")
PREVIEW = 384  # longer side of a previewed control image
MOST = 20


class Controls:
    """What is done with ControlNets in the tab. fields: of the form, which keeps those in use"""

    def __init__(self, page: Page, fields: PlainForm, painting: Painting):
        self.page, self._fields, self._painting = page, fields, painting

    # -- what is shown

    def html(self, values: Values) -> str:
        """Above the group's fields."""
        uses, family = values["nets"], model_of(values, self.page.project.job.model, self.page.workspace).family
        listed = "".join(self._row(number, use, family, values) for number, use in enumerate(uses))
        image = self._painting.shown(values["control_image"], "Control image for all")
        upload = '<button type="button" class="btn" data-paint="upload" data-into="gen-control">Upload control image</button>'
        entry = form.ENTRIES["control_net"]
        add = field(entry, "", "net_add", "", elem="gen-control_net", form="gen", common=None, hint=entry.hint)
        return (
            f'<ul class="nets">{listed}</ul><div class="concept-fields">{add}</div>'
            f'<div class="gen-paint"><div class="strip">{upload}{image}</div></div>'
        )

    def _row(self, number: int, use: dict[str, Any], family: str, values: Values) -> str:
        name, on = Path(str(use["file"])).stem, use.get("enabled", True)
        words, why = self._about(str(use["file"]), family)
        cross = button("net_remove", "\u00d7", number, kind="quiet", label=f"Remove {name}")
        image = use.get("image") or values["control_image"]
        images = self._painting.shown(image, f"Control image of {name}") + self._preview(number, use, image)
        previewed = _place(number, use) in self._browser().previewed
        chosen = preprocessors().get(use.get("preprocessor", "none"))
        names = [*SHOWN, *(chosen.settings if chosen else ())]
        see = button("net_see", "Hide preview" if previewed else "Preview", number, kind="quiet", again=True)
        return (
            f'<li class="net{"" if on else " is-off"}"><div><div class="strip"><label><input type="checkbox" data-act="net_part" '
            f'data-arg="{number}:enabled" aria-label="Use {esc(name)}"{" checked" if on else ""}><b title="{esc(use["file"])}">'
            f'{middle(name)}</b></label><span class="badge{" bad" if why else ""}">{esc(words)}</span><span class="grow"></span>'
            f"{see if image else ''}{cross}</div>"
            f"{f'<p class=field-error>{esc(why)}</p>' if why else ''}<div class='strip'>{images}</div>"
            f'<div class="concept-fields">{self._drawn(number, use, names)}</div>'
            f'<details data-group="net {number}"><summary>Mode and fit</summary>'
            f'<div class="concept-fields">{self._drawn(number, use, DETAILS)}</div></details></div></li>'
        )

    def _drawn(self, number: int, use: dict[str, Any], names: Any) -> str:
        return "".join(
            field(
                PARTS[name],
                use.get(name, PARTS[name].default),
                "net_part",
                f"{number}:{name}",
                hint=PARTS[name].hint,
                elem=f"net-{number}-{name}",
                changed=use.get(name, PARTS[name].default) != PARTS[name].default,
            )
            for name in names
        )

    def _about(self, file: str, family: str) -> tuple[str, str]:
        """(kind and family of a file, why it cannot be used)"""
        try:
            path = find_control_net(file, self.page.workspace)
        except ProblemsError as error:
            return "unknown", error.problems[0].what
        facts = facts_of_file(path)
        return " ".join(badges(facts)) or "unknown", misfit(facts, path, form.ENTRIES["control_net"].holds, family)

    def _preview(self, number: int, use: dict[str, Any], image: Any) -> str:
        if _place(number, use) not in self._browser().previewed or not image:
            return ""
        path = resolve_path(str(image))
        if not self.page.roots.holds(path) or not path.is_file():
            return ""
        asked = None if use.get("preprocessor", "none") == "none" else ControlUse.model_validate(use)
        try:
            url = _hint(path, path.stat().st_mtime_ns, asked)
        except ProblemsError as error:
            return f'<p class="field-error">{esc(error.problems[0].what)}</p>'
        return f'<img class="net-hint" src="{url}" alt="What the ControlNet sees">'

    def _browser(self) -> Browser:
        return self.page.browsers.of(ASKING.get())

    # -- changes

    def act(self, act: str, arg: str, value: str) -> None:
        """Something was pressed or written in the group. Raises ProblemsError."""
        first, _, name = arg.partition(":")
        number = int(first) if first.isdecimal() and len(first) < 4 else -1
        with self.page.project.lock:
            values = self._fields.load()
            uses = list(values["nets"])
            if act == "net_add":
                uses.append(self._added(value, len(uses)))
            elif not 0 <= number < len(uses):
                return
            elif act == "net_see":
                self._browser().previewed ^= {_place(number, uses[number])}
                return
            elif act == "net_remove":
                del uses[number]
            elif name in PARTS:
                uses[number] = changed_values(PARTS, uses[number], name, value, self.page.roots)
            self._fields.put(values | {"nets": uses})

    def _added(self, text: str, before: int) -> dict[str, Any]:
        if before >= MOST:
            raise ProblemsError.one(f"{MOST} ControlNets are the most", "ControlNet", "remove one", "controls.too-many")
        path = find_control_net(text, self.page.workspace)
        self.page.roots.check(str(path), "ControlNet")
        return {"file": portable_name(path, self.page.workspace) if not Path(text).is_absolute() else text}


def _place(number: int, use: dict[str, Any]) -> str:
    return f"{number} {use['file']}"


@lru_cache(maxsize=16)
def _hint(path: Path, changed: int, asked: ControlUse | None) -> str:
    """The address of what a ControlNet would see, small. changed: when the file did; asked: None without a preprocessor"""
    image = opened(path, CONTROL)
    image.thumbnail((PREVIEW, PREVIEW))
    return png_address(image if asked is None else Image.fromarray(make_hint(np.array(image), asked)))
