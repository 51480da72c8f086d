"""The form every setting is declared in, and how the declarations are read back."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self, TypedDict, Union, Unpack, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

# What a setting's text can name: a path; a path or the name of something that lies in models/ or outputs/; one with a word
# before it (word=file); a part of a file's or folder's name; a training state here or on the hub; a model to fetch; a repository to upload to; a tracker; its settings.
NAMES = Literal[
    "", "path", "path or name", "word=path", "part", "state", "download", "upload", "tracker", "tracker settings"
]

PATHS = {"path", "path or name", "state", "download"}  # of NAMES: one text that is pasted as a whole

# Rows of the first screen, from the top.
FIRST = Literal["", "method", "model", "word", "length", "step", "result"]
ROWS: tuple[str, ...] = get_args(FIRST)[1:]
SAME = "="  # a name in sd-scripts, or in its metadata, that is the field's


class Settings(BaseModel):
    """A group of settings: frozen, unknown names refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def __pydantic_init_subclass__(cls, **_given: Any) -> None:
        """A setting without a title, and the name of one that sd-scripts has too, are its field's name."""
        for name, info in cls.model_fields.items():
            if about := about_of(info):
                info.title = info.title or name.replace("_", " ").capitalize()
                about["kohya"] = name if about["kohya"] == SAME else about["kohya"]
                about["recorded"] = f"ss_{name}" if about["recorded"] == SAME else about["recorded"]

    def summary(self) -> str:
        """The group in one line, as a closed group of the form shows it; empty lists what is not at its default."""
        return ""

    @classmethod
    def title_of(cls, name: str) -> str:
        """The title of one of its settings, as the page shows it."""
        return cls.model_fields[name].title or name

    def label(self, name: str) -> str:
        """The label of the value that a choice has."""
        value = getattr(self, name)
        return Declared(name, "", name, type(self).model_fields[name]).label(value)


class About(TypedDict, total=False):
    """What a setting says of itself in addition to pydantic's own; a text is empty where it says nothing."""

    level: Literal["shown", "more"]  # behind "More"
    unit: str  # of the number ("images", "minutes")
    kohya: str  # its name in sd-scripts (with `kohya_setting`, the field's)
    source: str  # paper or program it follows
    labels: dict[str, str]  # choice -> words shown where they are not the choice itself
    # A hint where the type does not say it ("lines", "folder", "extension"); "blocks", "block rates" and "block weights" are numbers by
    # block, which have bars: the block rates of one group are one control; "layers" has the tree of a model's layers.
    widget: str
    costs: str  # what it costs: memory, speed
    names: NAMES  # what outside the job it names: checked where a job enters the engine (core/settings/named.py)
    holds: (
        str  # the kinds of model file that it names, comma-separated ("lora", "checkpoint, lora"): the page lists those
    )
    section: str  # heading above it and those after it, in a long group
    first: FIRST  # its row on the first screen
    brief: str  # shown there instead of the help
    hint: str  # what an empty field means ("off"), shown in it where the setting may be left empty
    only: str  # the methods (of a folder's settings: the roles) it is shown for, comma-separated; empty for all
    # What it needs of others in its group to have an effect, separated by "; ": "noise_offset" (on, or filled in), "!no_vae" (off, or
    # empty), "loss_type=huber, smooth_l1" (one of these). The form says so (core/settings/needs.py).
    needs: str
    replaces: str  # the setting of its group that has no effect while this one is filled in
    elsewhere: str  # the tab and element that show it instead of the form ("Dataset#ds-sources")
    recorded: str  # the name of its value in the metadata of LoRA files; SAME for ss_ and the field's
    empty_as: str  # settings of its group, comma-separated: the first that is set holds while this one is empty
    blocks_of: str  # of block weights: the setting of its group that names the files with these blocks; a list has a line for each


class Given(About, total=False):
    """`About`, and bounds as in pydantic's Field."""

    default_factory: Any
    ge: float
    gt: float
    le: float
    lt: float
    multiple_of: int
    min_length: int
    max_length: int
    pattern: str
    strict: bool


UNSAID: About = {**dict.fromkeys(About.__annotations__, ""), "level": "more", "labels": {}}  # type: ignore[typeddict-item]


def setting(
    default: Any = ...,
    *,
    help: str,
    title: str = "",
    within: tuple[float, float] | None = None,
    **given: Unpack[Given],
) -> Any:
    """Declare a setting once; page, JSON, command line, checks, docs and search are read from it.

    title   the label; empty for the field's name in words      help    what it does and when to change it
    within  the lowest and the highest value                    given   all else, see `About`
    """
    about: Any = UNSAID | {name: value for name, value in given.items() if name in UNSAID}
    field: dict[str, Any] = {name: value for name, value in given.items() if name not in UNSAID}
    if "default_factory" not in field:
        field["default"] = default
    if within is not None:
        field["ge"], field["le"] = within
    made: Any = Field(title=title, description=help, json_schema_extra={"about": about}, **field)
    if about["names"] in PATHS:
        made.metadata.append(BeforeValidator(_as_pasted))
    return made


def kohya_setting(default: Any = ..., **about: Any) -> Any:
    """A setting with the same name in sd-scripts. about: as of `setting`."""
    return setting(default, kohya=SAME, **about)


def _as_pasted(value: Any) -> Any:
    """Paths without the blanks and quotation marks that "Copy as path" puts around them."""
    if isinstance(value, list):
        return [_as_pasted(each) for each in value]
    if not isinstance(value, str):
        return value
    bare = value.strip()
    return bare[1:-1].strip() if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'" else bare


def follows_compatibility(plain: str, sd_scripts: str, sd_scripts_09: str = "") -> Any:
    """A field that nobody sets: it follows `model.compatibility` of the job (see `Job`), and is in no preset or form."""
    values: Any = {"none": plain, "sd-scripts-0.10": sd_scripts, "sd-scripts-0.9": sd_scripts_09 or sd_scripts}
    return Field(plain, exclude=True, json_schema_extra={"compatibility": values})


@cache
def following(group: type[BaseModel]) -> dict[str, dict[str, str]]:
    """{field: {compatibility: value}} of the fields of a group that follow `model.compatibility`."""
    found: dict[str, dict[str, str]] = {}
    for name, info in group.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "compatibility" in extra:
            found[name] = extra["compatibility"]  # type: ignore[assignment]
    return found


class Job(Settings):
    """Groups of settings, complete. What follows `model.compatibility` is kept in step with it, also in copies."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        return self._follow()

    def _follow(self) -> Self:
        chosen = getattr(getattr(self, "model", None), "compatibility", "none")
        for name in type(self).model_fields:
            group: Settings = getattr(self, name)
            wanted = {field: values[chosen] for field, values in following(type(group)).items()}
            if any(getattr(group, field) != value for field, value in wanted.items()):
                self.__dict__[name] = group.model_copy(update=wanted)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        return super().model_copy(update=update, deep=deep)._follow()


def zero_is_off(value: Any) -> Any:
    """None for the 0 that sd-scripts' settings files have where an option is off."""
    return None if not isinstance(value, bool) and value in (0, "0") else value


def numbers_as_text(value: Any) -> Any:
    """ "1,0.5" for [1, 0.5] and "1" for 1; anything that is not a number stays, and the rules report it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
        return ",".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, (int, float)) else value


def minus_one_is_random(seed: Any) -> Any:
    """None, a random seed, for the -1 that A1111 and others write for it."""
    return None if not isinstance(seed, bool) and seed in (-1, "-1") else seed


# Settings that are read in further forms: 0 for off, numbers and JSON lists for text with commas as in sd-scripts, -1 for random
IntOrOff = Annotated[int | None, BeforeValidator(zero_is_off)]
FloatOrOff = Annotated[float | None, BeforeValidator(zero_is_off)]
NumberList = Annotated[str | None, BeforeValidator(numbers_as_text)]
Seed = Annotated[int | None, BeforeValidator(minus_one_is_random)]
SEEDS = 2**64  # torch's generators take the seeds below it
SEED_RANGE = (0, SEEDS - 1)
FRESH_SEEDS = 2**32  # random ones are below it, which every program takes


def about_of(info: FieldInfo) -> dict[str, Any]:
    """What `setting` says of a field in addition to pydantic's own; empty for other fields."""
    extra = info.json_schema_extra
    return extra["about"] if isinstance(extra, dict) and "about" in extra else {}  # type: ignore[return-value]


def _text_of(name: str) -> property:
    return property(lambda self: about_of(self.info).get(name, ""))


def default_of(info: FieldInfo) -> Any:
    """A field's default. pydantic's own way asks at every call what the factory takes, a tenth of the work of a form."""
    factory = cast(Callable[[], Any] | None, info.default_factory)
    return factory() if factory else info.get_default()


@dataclass(frozen=True)
class Declared:
    """One setting as declared. `path` is its dotted name ("noise.min_snr_gamma")."""

    path: str
    group: str
    name: str
    info: FieldInfo

    title = property(lambda self: self.info.title or self.name)
    help = property(lambda self: self.info.description or "")
    level = property(lambda self: about_of(self.info).get("level", "more"))
    names = _text_of("names")
    unit = _text_of("unit")
    kohya = _text_of("kohya")
    source = _text_of("source")
    widget = _text_of("widget")
    costs = _text_of("costs")
    section = _text_of("section")
    first = _text_of("first")
    brief = _text_of("brief")
    hint = _text_of("hint")
    needs = _text_of("needs")
    replaces = _text_of("replaces")
    elsewhere = _text_of("elsewhere")
    recorded = _text_of("recorded")
    empty_as = _text_of("empty_as")
    blocks_of = _text_of("blocks_of")
    labels = property(lambda self: about_of(self.info).get("labels", {}))

    @property
    def only(self) -> list[str]:
        """The methods or roles it is shown for; empty for all."""
        text = str(about_of(self.info).get("only", ""))
        return text.split(", ") if text else []

    @property
    def holds(self) -> tuple[str, ...]:
        """The kinds of model file that it names; empty where it names none."""
        text = str(about_of(self.info).get("holds", ""))
        return tuple(text.split(", ")) if text else ()

    @property
    def one_choice(self) -> bool:
        """Whether there is nothing to choose: a single choice that cannot be left empty."""
        return len(self.choices) == 1 and not self.optional

    @property
    def kohya_names(self) -> list[str]:
        """Its names in sd-scripts; one setting may stand for several."""
        return self.kohya.split(", ") if self.kohya else []

    @property
    def default(self) -> Any:
        return default_of(self.info)

    @property
    def optional(self) -> bool:
        return type(None) in union_members(self.info.annotation)

    @property
    def choices(self) -> list[Any]:
        """The values of a Literal, else an empty list."""
        for member in union_members(self.info.annotation):
            if get_origin(member) is Literal:
                return list(get_args(member))
        return []

    def label(self, choice: Any) -> str:
        """The words that a choice is shown with."""
        return str(self.labels.get(choice, choice))

    @cached_property
    def kind(self) -> str:
        """ "choice", "bool", "int", "float", "text", "pair" (width and height), "list", "object" (of JSON), "span" (steps, a
        part or a percentage of the run) or "arguments" (names with values)."""
        if self.widget in ("span", "arguments"):
            return str(self.widget)
        if self.choices:
            return "choice"
        members = [member for member in union_members(self.info.annotation) if member is not type(None)]
        origins = [get_origin(member) or member for member in members]
        if tuple in origins:
            return "pair"
        if list in origins:
            return "list"
        if dict in origins:
            return "object"
        for plain, name in ((bool, "bool"), (float, "float"), (int, "int")):
            if plain in origins:
                return name
        return "text"

    @property
    def bounds(self) -> dict[str, Any]:
        """ge, gt, le, lt, multiple_of as declared."""
        found: dict[str, Any] = {}
        for constraint in _constraints(self.info):
            for name in ("ge", "gt", "le", "lt", "multiple_of"):
                value = getattr(constraint, name, None)
                if value is not None:
                    found[name] = value
        return found

    @property
    def range_text(self) -> str:
        """The allowed values in words: "1 to 1000", "above 0, up to 1", "constant, cosine or linear"."""
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        bounds = self.bounds
        steps = f", a multiple of {bounds['multiple_of']}" if "multiple_of" in bounds else ""
        if "ge" in bounds and "le" in bounds:
            return f"{bounds['ge']} to {bounds['le']}{steps}"
        words = {"gt": "above {}", "ge": "{} or more", "le": "up to {}", "lt": "below {}"}
        ends = ", ".join(text.format(bounds[name]) for name, text in words.items() if name in bounds)
        return ends + steps if ends else steps.removeprefix(", ")


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of X | Y, also of unions within unions, or the annotation alone; Annotated wrappers taken off."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, types.UnionType):
        return (annotation,)
    return tuple(dict.fromkeys(member for each in get_args(annotation) for member in union_members(each)))


def _constraints(info: FieldInfo) -> list[Any]:
    """Bounds of the field itself and of Annotated members of its type."""
    found = list(info.metadata)
    members = (
        get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else (info.annotation,)
    )
    for member in members:
        if get_origin(member) is Annotated:
            for extra in get_args(member)[1:]:
                found.extend(extra.metadata if isinstance(extra, FieldInfo) else [extra])
    return found


def fields_of(group: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a group that a person sets."""
    return {name: info for name, info in group.model_fields.items() if name not in following(group)}


def declared(model: type[BaseModel]) -> Iterator[Declared]:
    """Every setting of a job model, group by group, in the order of declaration."""
    for group, group_info in model.model_fields.items():
        group_type = group_info.annotation
        if isinstance(group_type, type) and issubclass(group_type, Settings):
            for name, info in fields_of(group_type).items():
                yield Declared(f"{group}.{name}", group, name, info)


def settings_called(name: str, known: Mapping[str, Declared], method: str = "") -> list[str]:
    """Paths of the settings with this name, here or in sd-scripts: the method's own first, those of other methods last."""
    found = [path for path, each in known.items() if name in (each.name, *each.kohya_names)]
    methods = known["method.kind"].choices if "method.kind" in known else []
    return sorted(found, key=lambda path: (known[path].group != method, known[path].group in methods))


def group_shown(job: BaseModel, group: str) -> bool:
    """Whether a group is of use: one that belongs to a choice (a kind of network) only while that is chosen."""
    chooser = chooser_of(type(job).model_fields[group])
    return not chooser or value_of(job, chooser) == group


def chooser_of(group: FieldInfo) -> str:
    """The setting whose choice a group belongs to ("network.kind"); "" for most."""
    extra = group.json_schema_extra
    return str(extra.get("chosen_by") or "") if isinstance(extra, dict) else ""


def item_of(entry: Declared) -> type[Settings] | None:
    """What a list setting is made of, where its items have settings of their own: a folder of the dataset, a LoRA."""
    for member in union_members(entry.info.annotation):
        for item in get_args(member):
            if isinstance(item, type) and issubclass(item, Settings):
                return item
    return None


def item_settings(entry: Declared) -> list[Declared]:
    """The settings of a list's items that they do not share with groups of the job: "dataset.sources[].num_repeats"."""
    item = item_of(entry)
    names = item.__annotations__ if item is not None else ()
    place = f"{entry.path}[]"
    fields = item.model_fields if item is not None else {}
    return [Declared(f"{place}.{name}", place, name, info) for name, info in fields.items() if name in names]


def value_of(job: BaseModel, path: str) -> Any:
    """The value at a dotted path ("noise.min_snr_gamma")."""
    group, name = path.split(".", 1)
    return getattr(getattr(job, group), name)


def every(value: int | float | None) -> int | float | None:
    """A period of an "every n" or "keep last n" setting: None, 0 and negative mean off."""
    return value if value is not None and value > 0 else None
