"""ControlNets of the Generate form: a row for each with its settings and control image, and the field that adds one."""

from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image

from core.control.hints import settings_of
from core.control.hints.by_model import HintMaker
from core.control.hints.edges import has_lines
from core.control.hints.models import checked_model, known_models
from core.generation.model.index import facts_of_file
from core.generation.model.library import find, portable_name, title_of_name
from core.generation.model.other_files import NETS
from core.generation.plan.initial import CONTROL, opened
from core.generation.sample.canvas import control_image_for
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace, resolve_path
from core.settings.base import Declared
from core.settings.generation.controls import ControlUse
from core.settings.hints import BY_MODEL
from tabs.captions.mask_painting import png_url
from tabs.context import Page
from tabs.form.form_page import FormPage
from tabs.form.form_values import changed_values, entries
from tabs.form.model_lists import badges
from tabs.form.picker import misfit
from tabs.form.plain_form import PlainForm, Values
from tabs.form.view import FieldView
from tabs.generate import form
from tabs.generate.painting import Painting
from tabs.generate.panel import model_of
from tabs.markup import button, esc, index_of, middle, options, row_of

PARTS: dict[str, Declared] = entries(ControlUse, "net")
BASIC, DETAILS = ("image", "weight", "start_at", "end_at", "preprocessor"), ("mode", "fit")
PREVIEW = 512  # longest side of a previewed control image
PREVIEW_SECONDS, MAP_SECONDS = 5.0, 1.0  # for which a response waits for a previewed one, for a thumbnail
OF_MODEL = f"{BY_MODEL}:"  # prefix of a model's name in the list of preprocessors
MAX_NETS = 20
# Words in the names of ControlNets, and the preprocessor that each begins with, as A1111's control types.
HINT_OF_NAME = {
    "canny": "canny",
    "softedge": "soft_edges",
    "soft_edge": "soft_edges",
    "scribble": "scribble",
    "tile": "tile",
    "shuffle": "shuffle",
    "inpaint": "inpaint",
    "blur": "blur",
}


LINES = ("canny", "scribble")  # preprocessors of which an image can be finished


class Controls:
    """Render the ControlNets of the Generate form and handle their events. fields: the form, whose value "nets" lists the ControlNets"""

    def __init__(self, page: Page, fields: PlainForm, painting: Painting):
        self.page, self._fields, self._painting = page, fields, painting

    # -- display

    def html(self, values: Values) -> str:
        """Return the HTML of the ControlNet card's top: the common control image, a row for each ControlNet, the field that adds one."""
        uses, family = values["nets"], model_of(values, self.page.project.job.model, self.page.workspace).family
        listed = "".join(self._row(number, use, family, values) for number, use in enumerate(uses))
        image = self._painting.thumb(values["control_image"], "Control image for all")
        upload = '<button type="button" class="btn" data-paint="upload" data-into="gen-control">Upload control image</button>'
        entry = form.ENTRIES["control_net"]
        add = FieldView(entry, act="net_add", id="gen-control_net", form="gen", empty=entry.hint).line()
        return (
            f'<div class="gen-paint"><div class="strip">{upload}{image}</div></div><ul class="nets">{listed}</ul>'
            f'<div class="concept-fields">{add}</div>'
        )

    def _row(self, index: int, use: dict[str, Any], family: str, values: Values) -> str:
        """Return the HTML of a ControlNet's row.

        index   index in values["nets"]
        use     values of the ControlUse, with "file"
        family  of the base model, "" if unknown
        """
        name, on = title_of_name(str(use["file"]), self.page.workspace), use.get("enabled", True)
        badge, reason = self._about(str(use["file"]), family)
        remove = button("net_remove", "\u00d7", index, kind="quiet", label=f"Remove {name}")
        image = use.get("image") or values["control_image"]
        images = self._painting.thumb(image, f"Control image of {name}") + self._preview(index, use, image, values)
        previewed = _preview_key(index, use) in self.page.browser.previewed
        known = _hint_model(use) in known_models(self.page.workspace)
        names = [*BASIC, *(() if known else settings_of(use.get("preprocessor", "none")))]
        preview = button("net_see", "Hide preview" if previewed else "Preview", index, kind="quiet", again=True)
        return (
            f'<li class="net{"" if on else " is-off"}"{row_of(str(use["file"]))}>'
            f'<div><div class="strip"><label><input type="checkbox" data-act="net_part" '
            f'data-arg="{index}:enabled" aria-label="Use {esc(name)}"{" checked" if on else ""}><b title="{esc(name)}">'
            f'{middle(name)}</b></label><span class="badge{" bad" if reason else ""}">{esc(badge)}</span><span class="grow"></span>'
            f"{preview if image else ''}{remove}</div>"
            f"{f'<p class=field-error>{esc(reason)}</p>' if reason else ''}<div class='strip'>{images}</div>"
            f'<div class="concept-fields">{self._fields_with_models(index, use, names, "" if image else "choose or upload one")}</div>'
            f'<details data-group="net {index}"><summary>Mode and fit</summary>'
            f'<div class="concept-fields">{self._fields_with_models(index, use, DETAILS)}</div></details></div></li>'
        )

    def _fields_with_models(self, index: int, use: dict[str, Any], names: Any, empty: str = "") -> str:
        """Return the HTML of the ControlNet's fields `names`; the preprocessor list also offers the models in models/preprocessors.

        index  index of the ControlNet
        empty  placeholder of the control image field; "" for the declared one
        """
        models = known_models(self.page.workspace) if "preprocessor" in names else []
        chosen = _hint_model(use)
        with_model = use | {"preprocessor": OF_MODEL + chosen} if chosen in models else use
        listed = options(((name, OF_MODEL + name) for name in models), f"{OF_MODEL}{chosen}")
        html = ""
        for name in names:
            entry, value = PARTS[name], with_model.get(name, PARTS[name].default)
            hint, changed = empty if empty and name == "image" else entry.hint, value != entry.default
            field = FieldView(
                entry, value, "net_part", f"{index}:{name}", empty=hint, id=f"net-{index}-{name}", changed=changed
            ).line()
            html += field.replace("</select>", listed + "</select>", 1) if name == "preprocessor" else field
        return html

    def _about(self, file: str, family: str) -> tuple[str, str]:
        """Return (text with kind and family of a ControlNet file, "" or the reason why it does not work with `family`)."""
        try:
            path = find("controlnet", file, self.page.workspace)
        except ProblemsError as error:
            return "unknown", error.problems[0].what
        facts = facts_of_file(path)
        return " ".join(badges(facts)) or "unknown", misfit(facts, path, form.ENTRIES["control_net"].holds, family)

    def _preview(self, index: int, use: dict[str, Any], image: Any, values: Values) -> str:
        """Return the HTML of the preprocessed control image: large while previewed, else a thumbnail; "" if there is none.

        Thumbnails are not made by preprocessors that run a model. Errors are returned as HTML text; `image`: path of the control image.
        """
        large = _preview_key(index, use) in self.page.browser.previewed
        if not image or (not large and use.get("preprocessor", "none") in ("none", BY_MODEL)):
            return ""
        path = resolve_path(str(image))
        if not self.page.roots.holds(path) or not path.is_file():
            return ""
        control = ControlUse.model_validate(use)
        sides = form.sides(values, self.page.project.job, self.page.workspace)
        changed = [path.stat().st_mtime_ns]
        try:
            if control.preprocessor == BY_MODEL:
                model = checked_model(control.hint_model, self.page.workspace, NETS).file
                self.page.roots.check(model, "Model")
                changed.append(model.stat().st_mtime_ns)
            url = _hint(path, tuple(changed), control, sides, self.page.workspace).result(
                PREVIEW_SECONDS if large else MAP_SECONDS
            )
        except ProblemsError as error:
            return f'<p class="field-error">{esc(error.problems[0].what)}</p>'
        except TimeoutError:
            note = '<p class="note">The preprocessor is still working: hide the preview, and show it again later</p>'
            return note if large else ""
        return f'<img class="net-{"hint" if large else "map"}" src="{url}" alt="What the ControlNet sees">'

    # -- changes

    def act(self, act: str, arg: str, value: str) -> None:
        """Handle an event of the ControlNet card. Raises ProblemsError.

        act    "net_add", "net_see" (toggle the preview), "net_remove" or "net_part" (change a field)
        arg    "index" of the ControlNet, or "index:field"
        value  new text of the field, or the file name or path to add
        """
        index_text, _, name = arg.partition(":")
        with self.page.project.lock:
            values = self._fields.load()
            uses = list(values["nets"])
            index = index_of(index_text, len(uses))
            if act == "net_add":
                uses.append(self._new_net(value, len(uses)))
            elif index is None:
                return
            elif act == "net_see":
                self.page.browser.previewed ^= {_preview_key(index, uses[index])}
                return
            elif act == "net_remove":
                del uses[index]
            elif name == "preprocessor" and value.removeprefix(OF_MODEL) in known_models(self.page.workspace):
                uses[index] = uses[index] | {"preprocessor": BY_MODEL, "hint_model": value.removeprefix(OF_MODEL)}
            elif name == "preprocessor" and value == BY_MODEL:  # one that is not in the list
                uses[index] = uses[index] | {"preprocessor": BY_MODEL, "hint_model": ""}
            elif name in PARTS:
                uses[index] = changed_values(PARTS, uses[index], name, value, self.page.roots)
            changed, note = with_fitting_preprocessors(self.page, values, values | {"nets": uses})
            self._fields.put(changed)
        if note:
            self.page.say("done", note)

    def _new_net(self, text: str, in_use: int) -> dict[str, Any]:
        """Return {"file", "preprocessor" if the file name suggests one} for a ControlNet to add by its name or path.

        in_use: number of ControlNets in the form. Raises ProblemsError above MAX_NETS, or if the file is missing or not allowed.
        """
        if in_use >= MAX_NETS:
            raise ProblemsError.one(
                f"{MAX_NETS} ControlNets are the most", "ControlNet", "remove one", "controls.too-many"
            )
        path = find("controlnet", text, self.page.workspace)
        self.page.roots.check(str(path), "ControlNet")
        file = portable_name(path, self.page.workspace) if not Path(text).is_absolute() else text
        preprocessor = _hint_of_name(file)
        return {"file": file} | ({"preprocessor": preprocessor} if preprocessor else {})


def with_fitting_preprocessors(page: FormPage, before: Values, values: Values) -> tuple[Values, str]:
    """Return (form values, message): preprocessors of line ControlNets (canny, scribble) adapted to their new control images.

    A new control image that consists of lines turns the preprocessor off. A new one without lines, in place of one with lines, turns on
    the preprocessor that the ControlNet's file name suggests. before: form values before the change; message: "" if nothing was adapted
    """
    images = {(str(use["file"]), use.get("image") or before["control_image"]) for use in before["nets"]}
    uses, note = [], ""
    for use in values["nets"]:
        file, image = str(use["file"]), use.get("image") or values["control_image"]
        current = use.get("preprocessor", "none")
        wanted, hint = current, _hint_of_name(file)
        if (file, image) not in images and current in LINES and _has_lines(page, image):
            wanted, why = "none", "the image has its lines already"
        elif (
            (file, image) not in images
            and current == "none"
            and hint in LINES
            and image
            and not _has_lines(page, image)
        ):
            had_lines = any(name == file and _has_lines(page, each) for name, each in images)
            wanted, why = (hint if had_lines else current), "the image has no lines yet"
        if wanted != current:
            title = title_of_name(file, page.workspace)
            note += f" The preprocessor of {title} is set to {PARTS['preprocessor'].label(wanted)}: {why}."
        uses.append(use | {"preprocessor": wanted} if wanted != current else use)
    return values | {"nets": uses}, note.strip()


def _has_lines(page: FormPage, image: Any) -> bool:
    """Return whether the image at path `image` is a drawing of lines; False if it is missing, unreadable or not allowed."""
    path = resolve_path(str(image)) if image else None
    if path is None or not page.roots.holds(path) or not path.is_file():
        return False
    try:
        return has_lines(np.array(opened(path, CONTROL)))
    except ProblemsError:
        return False


def _hint_of_name(file: str) -> str | None:
    """Return the preprocessor that a ControlNet's file name suggests, such as "canny"; None if the name suggests none."""
    return next((hint for word, hint in HINT_OF_NAME.items() if word in Path(file).stem.lower()), None)


def _hint_model(use: dict[str, Any]) -> str | None:
    """Return the name of the model that preprocesses the ControlNet's image; None if its preprocessor is not a model."""
    return use.get("hint_model") if use.get("preprocessor") == BY_MODEL else None


def _preview_key(index: int, use: dict[str, Any]) -> str:
    """Return the key under which the browser's state stores that a ControlNet is previewed."""
    return f"{index} {use['file']}"


@lru_cache(maxsize=16)
def _hint(
    path: Path, changed: tuple[int, ...], use: ControlUse, size: tuple[int, int], workspace: Workspace
) -> Future[str]:
    """Start a thread that preprocesses the control image at `path`; return a future of the result as a data URL.

    changed  modification times of the image and model files in ns, only part of the cache key
    size     (width, height) of the generated images in pixels
    """
    url: Future[str] = Future()

    def preprocess(image: Image.Image) -> Image.Image:
        if use.preprocessor == "none":
            return image
        with HintMaker(workspace, NETS, CancelToken()) as maker:
            return Image.fromarray(maker.make(np.array(image), use))

    def make() -> None:
        try:
            image = control_image_for(opened(path, CONTROL), use.fit, size, None, preprocess)
            image.thumbnail((PREVIEW, PREVIEW))
            url.set_result(png_url(image))
        except Exception as error:  # shown in place of the preview
            url.set_exception(error)

    Thread(target=make, name="control preview", daemon=True).start()
    return url
