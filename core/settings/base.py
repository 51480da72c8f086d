"""Declare settings: `setting` and its metadata, the base models `Settings` and `Job`, and `Declared`, which reads declarations back."""

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self, TypedDict, Union, Unpack, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from core.record.workspace import pasted_path

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
    """Base model of a group of settings: frozen; refuses unknown names, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        """Fill in what declarations leave to the field's name: an empty title, and SAME as the name in sd-scripts or in metadata.

        A type that several fields share (Annotated) must have the same field name everywhere, since its metadata is changed in place.
        """
        for name, info in cls.model_fields.items():
            info.title = info.title or name.replace("_", " ").capitalize()
            if about := about_of(info):
                about["kohya"] = name if about["kohya"] == SAME else about["kohya"]
                about["recorded"] = f"ss_{name}" if about["recorded"] == SAME else about["recorded"]

    def summary(self) -> str:
        """Return one line about the group for the collapsed form; by default "", for which `values.summary` lists changed settings."""
        return ""

    @classmethod
    def title_of(cls, name: str) -> str:
        """Return the title of the setting `name`, as the page shows it."""
        return cls.model_fields[name].title or name

    def label(self, name: str) -> str:
        """Return the page's label for the current value of the choice setting `name`."""
        value = getattr(self, name)
        return Declared(name, "", name, type(self).model_fields[name]).label(value)


class About(TypedDict, total=False):
    """Metadata of a setting that pydantic's Field does not have. Texts default to "", `level` to "more", `labels` to {}."""

    level: Literal["shown", "more"]  # "more": behind "More" in the form
    unit: str  # unit of a number ("images", "minutes")
    kohya: str  # name in sd-scripts, several comma-separated; SAME for the field's (`kohya_setting`)
    source: str  # paper or program that the setting follows
    labels: dict[str, str]  # choice -> label on the page, by default the choice
    # Control in the form where the type does not determine it ("lines", "folder", "extension"). "blocks", "block rates" and "block
    # weights" are numbers by block, shown as bars; the block rates of a group share a control. "layers" has a tree of the model's layers.
    widget: str
    costs: str  # costs in memory or speed
    names: NAMES  # kind of path, name or id that the value is; checked where a job enters the engine (core/settings/named.py)
    holds: str  # accepted kinds of model file, comma-separated ("checkpoint, lora"), for the page's list of files
    section: str  # heading above this setting and those after it, in a long group
    first: FIRST  # row of the setting on the first screen
    brief: str  # text on the first screen instead of the help
    hint: str  # what an empty field means ("off"), shown in the field
    only: str  # methods (for a folder's settings: roles) that the setting is shown for, comma-separated; "" for all
    # Conditions on others in the group, all required for an effect, separated by "; ": "noise_offset" (on, or filled in), "!no_vae"
    # (off, or empty), "loss_type=huber, smooth_l1" (one of these). See core/settings/needs.py.
    needs: str
    replaces: str  # name of the setting in the group that has no effect while this one is filled in
    elsewhere: str  # tab and element that show the setting instead of the form ("Dataset#ds-sources")
    recorded: str  # key of the value in the metadata of LoRA files; SAME for ss_ and the field's name
    empty_as: str  # settings of the group, comma-separated: the first that is set applies while this one is empty
    blocks_of: str  # for block weights: the setting of the group that names the LoRA files; in a list a line for each


class SettingArguments(About, total=False):
    """Keyword arguments of `setting`: the metadata of `About`, and constraints as in pydantic's Field."""

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


ABOUT_DEFAULTS: About = {**dict.fromkeys(About.__annotations__, ""), "level": "more", "labels": {}}  # type: ignore[typeddict-item]


def setting(
    default: Any = ...,
    *,
    help: str,
    title: str = "",
    within: tuple[float, float] | None = None,
    **properties: Unpack[SettingArguments],
) -> Any:
    """Declare a setting, which page, JSON, command line, checks, docs and search then use; returns a pydantic field.

    default  default value; without one (and without `default_factory`) the setting is required
    help     what the setting does and when to change it
    title    the label; by default the field's name in words
    within   (minimum, maximum), both inclusive
    Other arguments are metadata (see `About`) or pydantic's constraints.
    """
    about: Any = ABOUT_DEFAULTS | {name: value for name, value in properties.items() if name in ABOUT_DEFAULTS}
    field: dict[str, Any] = {name: value for name, value in properties.items() if name not in ABOUT_DEFAULTS}
    if "default_factory" not in field:
        field["default"] = default
    if within is not None:
        field["ge"], field["le"] = within
    field_info: Any = Field(title=title, description=help, json_schema_extra={"about": about}, **field)
    if about["names"] in PATHS:
        field_info.metadata.append(BeforeValidator(_as_pasted))
    return field_info


def kohya_setting(default: Any = ..., **about: Any) -> Any:
    """Declare a setting that has the same name in sd-scripts; arguments as for `setting`."""
    return setting(default, kohya=SAME, **about)


def _as_pasted(value: Any) -> Any:
    """Return a path, or each path of a list, as `pasted_path` reads it; others unchanged."""
    if isinstance(value, list):
        return [_as_pasted(each) for each in value]
    return pasted_path(value) if isinstance(value, str) else value


def follows_compatibility(plain: str, sd_scripts: str, sd_scripts_09: str = "") -> Any:
    """Declare a derived field that `Job` sets by `model.compatibility`: `plain` for none, else the value for sd-scripts 0.10 or 0.9.

    `sd_scripts_09` defaults to `sd_scripts`. Derived fields are in no preset and no form.
    """
    values: Any = {"none": plain, "sd-scripts-0.10": sd_scripts, "sd-scripts-0.9": sd_scripts_09 or sd_scripts}
    return Field(plain, exclude=True, json_schema_extra={"compatibility": values})


@cache
def compatibility_values(group: type[BaseModel]) -> dict[str, dict[str, str]]:
    """Return {field: {value of model.compatibility: value of the field}} for a group's derived fields (`follows_compatibility`)."""
    rules: dict[str, dict[str, str]] = {}
    for name, info in group.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "compatibility" in extra:
            rules[name] = extra["compatibility"]  # type: ignore[assignment]
    return rules


class Job(Settings):
    """Base model of jobs, whose fields are groups of settings. Derived fields (`follows_compatibility`) are kept up to date, in copies
    too."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        """Set the derived fields after validation."""
        return self._follow()

    def _follow(self) -> Self:
        """Set the derived fields of all groups to the values for `model.compatibility`, in place; returns the job."""
        compatibility = getattr(getattr(self, "model", None), "compatibility", "none")
        for name in type(self).model_fields:
            group: Settings = getattr(self, name)
            wanted = {field: values[compatibility] for field, values in compatibility_values(type(group)).items()}
            if any(getattr(group, field) != value for field, value in wanted.items()):
                self.__dict__[name] = group.model_copy(update=wanted)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy as pydantic does, then update the derived fields."""
        return super().model_copy(update=update, deep=deep)._follow()

    def with_settings(self, **groups: Mapping[str, Any]) -> Self:
        """Return a copy with the settings in `groups` replaced, without validation: job.with_settings(generate={"seed": 1})."""
        return self.model_copy(update={name: getattr(self, name).model_copy(update=groups[name]) for name in groups})


def zero_is_off(value: Any) -> Any:
    """Return None for 0 and "0", which mean off in sd-scripts' files; other values, also False, unchanged."""
    return None if not isinstance(value, bool) and value in (0, "0") else value


def numbers_as_text(value: Any) -> Any:
    """Return "1,0.5" for [1, 0.5] and "1" for 1; other values unchanged, so that the rules report them."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
        return ",".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, (int, float)) else value


def minus_one_is_random(seed: Any) -> Any:
    """Return None, which draws a random seed, for the -1 that A1111 and others write; other values unchanged."""
    return None if not isinstance(seed, bool) and seed in (-1, "-1") else seed


def one_for_both(value: Any) -> Any:
    """Return (512, 512) for 512, and a list as a tuple, which strict JSON no longer takes for one here; other values unchanged."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value, value
    return tuple(value) if isinstance(value, list) else value


Both = BeforeValidator(one_for_both)  # of a pair: one number is both
# Types that also accept other programs' forms: 0 for off; numbers and JSON lists for comma-separated text; -1 for a random seed
IntOrOff = Annotated[int | None, BeforeValidator(zero_is_off)]
FloatOrOff = Annotated[float | None, BeforeValidator(zero_is_off)]
NumberList = Annotated[str | None, BeforeValidator(numbers_as_text)]
Seed = Annotated[int | None, BeforeValidator(minus_one_is_random)]
SEEDS = 2**64  # torch's generators accept seeds below it
SEED_RANGE = (0, SEEDS - 1)
FRESH_SEEDS = 2**32  # random seeds are below it, so that every program accepts them


def about_of(info: FieldInfo) -> dict[str, Any]:
    """Return the `About` metadata of a field declared with `setting`; {} for other fields."""
    extra = info.json_schema_extra
    return extra["about"] if isinstance(extra, dict) and "about" in extra else {}  # type: ignore[return-value]


def _text_of(name: str) -> property:
    """Return a property of `Declared` with the text of the metadata key `name`."""
    return property(lambda self: about_of(self.info).get(name, ""))


def default_of(info: FieldInfo) -> Any:
    """Return a field's default. pydantic's get_default inspects the factory at every call, which costs a tenth of the form's time."""
    factory = cast(Callable[[], Any] | None, info.default_factory)
    return factory() if factory else info.get_default()


@dataclass(frozen=True)
class Declared:
    """A declared setting: its group, name and pydantic field. `path` is its dotted name ("noise.min_snr_gamma")."""

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
        """Training methods, or roles of a dataset folder, that the setting is shown for; [] for all."""
        text = str(about_of(self.info).get("only", ""))
        return text.split(", ") if text else []

    @property
    def holds(self) -> tuple[str, ...]:
        """Kinds of model file that the setting accepts ("checkpoint", "lora"); () if it names no model file."""
        text = str(about_of(self.info).get("holds", ""))
        return tuple(text.split(", ")) if text else ()

    @property
    def one_choice(self) -> bool:
        """Whether the setting has a single choice and cannot be empty."""
        return len(self.choices) == 1 and not self.optional

    @property
    def kohya_names(self) -> list[str]:
        """Names of the setting in sd-scripts: several if it replaces several options, [] if there are none."""
        return self.kohya.split(", ") if self.kohya else []

    @property
    def default(self) -> Any:
        """Default value of the setting."""
        return default_of(self.info)

    @property
    def optional(self) -> bool:
        """Whether the setting can be empty (None)."""
        return type(None) in union_members(self.info.annotation)

    @property
    def choices(self) -> list[Any]:
        """Values of a Literal type; [] for other types."""
        for member in union_members(self.info.annotation):
            if get_origin(member) is Literal:
                return list(get_args(member))
        return []

    def label(self, choice: Any) -> str:
        """Return the page's label for `choice`, by default the choice itself."""
        return str(self.labels.get(choice, choice))

    @cached_property
    def kind(self) -> str:
        """Type of the value: "choice", "bool", "int", "float", "text", "pair" (width and height, or two numbers), "list", "object" (JSON),
        "span" (steps, a fraction or a percentage of the run) or "arguments" (names with values)."""
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
    def takes_one(self) -> bool:
        """Whether a pair may be a single number."""
        members = [member for member in union_members(self.info.annotation) if member is not type(None)]
        return len(members) > 1 or Both in self.info.metadata

    @property
    def plain(self) -> bool:
        """Whether values are numbers, booleans or choices, rather than text, pairs, lists or objects."""
        return self.kind in ("bool", "choice", "int", "float")

    @property
    def bounds(self) -> dict[str, Any]:
        """Declared limits as {name: value}, with pydantic's names ge, gt, le, lt and multiple_of."""
        bounds: dict[str, Any] = {}
        for constraint in _constraints(self.info):
            for name in ("ge", "gt", "le", "lt", "multiple_of"):
                value = getattr(constraint, name, None)
                if value is not None:
                    bounds[name] = value
        return bounds

    @property
    def range_text(self) -> str:
        """Allowed values as text: "1 to 1000", "above 0, up to 1", or the choices separated by commas; "" without limits."""
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        bounds = self.bounds
        steps = f", a multiple of {bounds['multiple_of']}" if "multiple_of" in bounds else ""
        if "ge" in bounds and "le" in bounds:
            return f"{bounds['ge']} to {bounds['le']}{steps}"
        patterns = {"gt": "above {}", "ge": "{} or more", "le": "up to {}", "lt": "below {}"}
        ends = ", ".join(text.format(bounds[name]) for name, text in patterns.items() if name in bounds)
        return ends + steps if ends else steps.removeprefix(", ")


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, flattened and without Annotated; (annotation,) for other types."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, types.UnionType):
        return (annotation,)
    return tuple(dict.fromkeys(member for each in get_args(annotation) for member in union_members(each)))


def _constraints(info: FieldInfo) -> list[Any]:
    """Return the pydantic constraints of a field, including those of Annotated members of its type."""
    constraints = list(info.metadata)
    members = (
        get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else (info.annotation,)
    )
    for member in members:
        if get_origin(member) is Annotated:
            for extra in get_args(member)[1:]:
                constraints.extend(extra.metadata if isinstance(extra, FieldInfo) else [extra])
    return constraints


def fields_of(group: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return {name: field} of a group's settings, without derived fields (`follows_compatibility`)."""
    return {name: info for name, info in group.model_fields.items() if name not in compatibility_values(group)}


def declared(model: type[BaseModel]) -> Iterator[Declared]:
    """Yield every setting of a job model, group by group, in the order of declaration."""
    for group, group_info in model.model_fields.items():
        group_type = group_info.annotation
        if isinstance(group_type, type) and issubclass(group_type, Settings):
            for name, info in fields_of(group_type).items():
                yield Declared(f"{group}.{name}", group, name, info)


def settings_called(name: str, known: Mapping[str, Declared], method: str = "") -> list[str]:
    """Return the paths of settings called `name` here or in sd-scripts: those in the group of `method` first, of other methods last.
    known: {dotted path: setting} to search"""
    paths = [path for path, each in known.items() if name in (each.name, *each.kohya_names)]
    methods = known["method.kind"].choices if "method.kind" in known else []
    return sorted(paths, key=lambda path: (known[path].group != method, known[path].group in methods))


def group_shown(job: BaseModel, group: str) -> bool:
    """Return whether the form shows `group`: always, unless it belongs to a choice (such as a network kind) that is not chosen."""
    chooser = chooser_of(type(job).model_fields[group])
    return not chooser or value_of(job, chooser) == group


def chooser_of(group: FieldInfo) -> str:
    """Return the path of the setting whose choice shows this group ("network.kind"); "" for groups that are always shown."""
    extra = group.json_schema_extra
    return str(extra.get("chosen_by") or "") if isinstance(extra, dict) else ""


def item_of(entry: Declared) -> type[Settings] | None:
    """Return the settings model of a list setting's items, such as dataset folders or LoRAs; None for plain values."""
    for member in union_members(entry.info.annotation):
        for item in get_args(member):
            if isinstance(item, type) and issubclass(item, Settings):
                return item
    return None


def item_settings(entry: Declared) -> list[Declared]:
    """Return the settings that a list's items declare ("dataset.sources[].num_repeats"), without those that items inherit from a group."""
    item = item_of(entry)
    names = item.__annotations__ if item is not None else ()
    path = f"{entry.path}[]"
    fields = item.model_fields if item is not None else {}
    return [Declared(f"{path}.{name}", path, name, info) for name, info in fields.items() if name in names]


def value_of(job: BaseModel, path: str) -> Any:
    """Return a job's value at a dotted path ("noise.min_snr_gamma")."""
    group, name = path.split(".", 1)
    return getattr(getattr(job, group), name)


def every(value: int | float | None) -> int | float | None:
    """Return the interval of an "every n" or "keep last n" setting; None (off) for None, 0 and negative values."""
    return value if value is not None and value > 0 else None
