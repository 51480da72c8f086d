"""Files of models from others at their edges: ONNX files, pickles, tensors in pieces; what pose networks return."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from core.control.hints import models, one_image
from core.control.hints.pose import bottom_up, top_down
from core.control.hints.pose.drawing import LIMBS
from core.control.hints.pose.person import person_of
from core.formats.onnx import file as onnx
from core.formats.onnx import runner as onnx_runner
from core.formats.tensors import chunks, pickle_machine, reading
from core.formats.tensors.entry import TensorEntry
from core.record.regular import check_regular
from tests.facts.samples import beside, smooth
from tests.facts.store import Facts, folder, producer, refused


def number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def part(field: int, content: bytes | int) -> bytes:
    """A field of a protocol buffer: an integer, or a message or text."""
    if isinstance(content, int):
        return number(field << 3) + number(content)
    return number(field << 3 | 2) + number(len(content)) + content


def value(name: str, *shape: int) -> bytes:
    sides = b"".join(part(1, part(1, side)) for side in shape)
    return part(1, name.encode()) + part(2, part(1, part(1, 1) + part(2, sides)))


def paths_to(message: str, goal: str = "entry", been: tuple[str, ...] = ()) -> Iterator[list[tuple[str, int]]]:
    """Each path of fields to external data that visits a message once."""
    for field, inside in onnx.MESSAGE_FIELDS[message].items():
        if inside == goal:
            yield [(message, field)]
        elif inside not in been:
            yield from ([(message, field), *rest] for rest in paths_to(inside, goal, (*been, message)))


def entry(location: str, key: bytes = b"location") -> bytes:
    return part(1, key) + part(2, location.encode())


def model_of(path: list[tuple[str, int]], location: str = "weights") -> bytes:
    content = entry(location)
    for _, field in reversed(path):
        content = part(field, content)
    return content


def checked(path: Path, data: bytes) -> Any:
    beside(path, data)
    return refused(onnx.check_onnx, path)


@producer
def onnx_files() -> Facts:
    """External data at each place of a model, shapes, damage, and each limit at its edge."""
    with folder() as root:
        root /= "in"
        path = root / "m.onnx"
        for way in paths_to("model"):
            yield f"needs {way}", checked(path, model_of(way))
        beside(root / "weights", "1234")
        beside(root.parent / "outside", "x")
        (root / "link").symlink_to(root.parent / "outside")
        short = [("model", 7), ("graph", 5), ("tensor", 13)]
        for location in (
            "weights",
            "./weights",
            "../outside",
            "link",
            "/etc/passwd",
            "a:b",
            "sub\\..\\..\\x",
            "w\0",
            "",
        ):
            yield f"location {location!r}", checked(path, model_of(short, location))
        yield "offset is no location", checked(path, part(7, part(5, part(13, entry("gone", b"offset")))))
        with patch.object(onnx, "MAX_BYTES", check_regular(beside(path, model_of(short))).st_size + 4):
            yield "bytes with data", checked(path, model_of(short))
            beside(root / "weights", "12345")
            yield "bytes with more data", checked(path, model_of(short))
        graph = value("in", 0, 3, 8, 8), value("out", 1, 5), value("scores", 2, 1_000_000)
        shapes = part(11, graph[0]) + part(12, graph[1]) + part(12, graph[2])
        whole = part(8, 13) + part(7, shapes)
        yield "shapes", checked(path, whole)
        yield "weights as inputs", checked(path, part(7, part(11, value("w", 999, 1, 1, 1)) + part(5, part(8, b"w"))))
        yield "many outputs", checked(path, part(7, part(12, value("out", 1, 1_000_001))))
        yield "negative side", checked(path, part(7, part(12, value("out", (1 << 64) - 1, 1 << 62))))
        for batch in (0, 256, 257):
            yield f"batch {batch}", checked(path, part(7, part(11, value("in", batch, 1, 1, 1))))
        sides = (
            (1, 3, 9459, 9459),
            (1, 3, 9460, 9459),
            (1, 3, 1 << 14, 1 << 14),
            (300, 3),
            (256, 1 << 20, 1, 1),
            (256, (1 << 20) + 1, 1, 1),
        )
        yield "batches", [bool(onnx.batch_too_large(each)) for each in sides]
        yield (
            "outputs",
            [
                bool(onnx.outputs_too_many(each))
                for each in ((1, 1_000_000), (1, 1_000_001), (1_000_001,), (1, 2, 1_000_001))
            ],
        )
        for damaged in (
            b"",
            b"\x00\x01",
            b"\x0b",
            b"\x3a\x05ab",
            b"\x3a",
            b"\x08" + b"\x80" * 10 + b"\x01",
            b"\x08" + b"\x80" * 9 + b"\x01",
            b"\x39" + bytes(8),
            b"\x39" + bytes(7),
            b"\x3d" + bytes(4),
            b"\x3d" + bytes(3),
            b"<!doctype html>",
            b"version https",
            b"\x07\x01",
            whole[:-1],
        ):
            yield f"damaged {damaged[:15].hex()} {len(damaged)}", checked(path, damaged)
        nested: list[tuple[str, int]] = [("model", 7)]
        for depth in (37, 38, 39, 40, 41):
            loop = [("graph", 1), ("node", 5), ("attribute", 6)]
            way = nested + [loop[each % 3] for each in range(depth - 1)]
            content = b""
            for _, field in reversed(way):
                content = part(field, content)
            yield f"depth {depth}", checked(path, content)
        for name, most, data in (
            ("MAX_NODES", 3, part(7, part(1, b"") * 3)),
            ("MAX_NODES", 2, part(7, part(1, b"") * 3)),
            ("MAX_TEXT", 3, whole),
            *(("MAX_FIELDS", most, part(7, part(2, b"") * 4)) for most in (4, 5, 9, 10)),
        ):
            with patch.object(onnx, name, most):
                yield f"{name} {most}", checked(path, data)
        yield "known kinds", [models.kind_of(outputs) for outputs in OUTPUTS]
        yield from folders_of_models(root / "models")


OUTPUTS: tuple[dict[str, list[int]], ...] = (
    {"simcc_x": [], "simcc_y": []}, {"a": [1, 17, 9], "b": [1, 17, 9]}, {"a": [1, 18, 9], "b": [1, 17, 9]}, {"a": [1, 133, 9], "b": [1,
    26, 9]},
    {"a": [1, 19, 4, 4], "b": [1, 38, 4, 4]}, {"a": [1, 19, 4, 4], "b": [1, 39, 4, 4]}, {"a": [1, 19, 4, 4]}, {"b": [1, 100, 85]},
    {"b": [1, 100, 84]},
    {"b": [1, 100, 5]}, {"b": [1, 6]}, {"dets": [1, 2], "labels": [1]}, {"labels": [1], "dets": [1, 2]}, {}, {"a": [1, 3, 8, 8]},
    {"simcc_x": [], "other": []}, {"a": [1, 9, 6], "b": [1, 9, 6]},
)  # fmt: skip


def folders_of_models(root: Path) -> Facts:
    """Which file of a folder is the model and which finds people for it."""
    from core.record.workspace import Workspace

    space = Workspace(root / "outputs", root)
    pose = part(7, part(12, value("simcc_x", 1, 17, 9)) + part(12, value("simcc_y", 1, 17, 9)))
    people, image = part(7, part(12, value("b", 1, 9, 5))), part(7, part(12, value("i", 1, 3, 8, 8)))
    folders: dict[str, dict[str, bytes | str]] = {
        "one": {"a.onnx": image}, "two": {"a.onnx": image, "b.ONNX": image}, "named": {"model.onnx": image, "b.onnx": image},
        "pose": {"a.onnx": people, "b.onnx": pose}, "only people": {"a.onnx": people}, "two people": {"a.onnx": people, "b.onnx": pose,
        "c.onnx": people},
        "chosen": {"a.onnx": people, "b.onnx": pose, "c.onnx": people, "profile.json": '{"detector": "c.onnx", "title": "T"}'},
        "gone": {"b.onnx": pose, "profile.json": '{"detector": "c.onnx"}'}, "empty": {"a.txt": "x"}, "kind": {"a.onnx": image,
        "profile.json": '{"kind": "openpose"}'},
        "wrong": {"a.onnx": image, "profile.json": '{"size": 15}'}, "many": {"a.onnx": people, "b.onnx": people},
    }  # fmt: skip
    for name, files in folders.items():
        for file, data in files.items():
            beside(space.preprocessors / name / file, data)

        def found(name: str = name) -> Any:
            model = models.checked_model(name, space, "here")
            return [model.file, model.kind, model.detector, model.title, models.portable_model(name, space)]

        yield f"folder {name}", refused(found)
    beside(space.preprocessors / "single.onnx", image)
    yield (
        "names",
        [
            models.known_models(space),
            refused(models.checked_model, "", space, "here"),
            refused(models.checked_model, "nope", space, "here"),
        ],
    )


@producer
def pickles() -> Facts:
    """Objects in each protocol, with the fewest steps and bytes that suffice; damaged programs."""
    storage = OrderedDict(
        a=1,
        b=[2.5, None, True, (1, 2, 3, 4), {3, 4}, b"x" * 300],
        c={"d": -(2**70), 5: "ü" * 300, 2**63: 1, -(2**63): 2},
    )
    for name, thing in {
        "nested": storage,
        "long": list(range(70000, 71500)),
        "small": (),
        "float": [1e300, -0.0],
        "frozen": frozenset((1,)),
    }.items():
        for protocol in range(5):
            data = pickle.dumps(thing, protocol)
            steps, sizes = fewest(data, "max_steps"), fewest(data, "max_bytes")
            yield f"{name} {protocol}", [loaded(data, short=name == "long"), steps, sizes]
    for code in PROGRAMS:
        yield f"{code[:30]!r} {len(code)}", loaded(code)


def loaded(data: bytes, short: bool = False, **limits: int) -> Any:
    handle = io.BytesIO(data)
    machine = pickle_machine.Machine(handle, **limits)
    try:
        result = machine.load()
    except Exception as error:
        return [type(error).__name__, handle.tell()]
    return [len(result) if short else result, machine.odd_keys, machine.storages, handle.tell()]


def fewest(data: bytes, limit: str) -> int:
    low, high = -1, 1 << 18
    while high - low > 1:
        middle = (low + high) // 2
        with suppress(Exception):
            pickle_machine.Machine(io.BytesIO(data), **{limit: middle}).load()
            high = middle
            continue
        low = middle
    return high


REF = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
BUILD = b"ctorch._utils\n_rebuild_tensor_v2\n(" + REF
PROGRAMS = (
    b"", b".", b"N", b"N.", b"0.", b"(.", b"(0.", b"((N.", b"1.", b"t.", b"(K\x01K\x02t.", b"(K\x01K\x02l.", b"(K\x01K\x02d.",
    b"(K\x01d.", b"}K\x01K\x02s.",
    b"]K\x01a.", b"K\x01K\x02a.", b"K\x01K\x02K\x03s.", b"](K\x01K\x02e.", b"}(K\x01K\x02K\x03K\x04u.", b"\x85.", b"K\x01\x85.",
    b"K\x01K\x02\x86.", b"K\x01K\x02K\x03\x87.",
    b"I00\n.", b"I01\n.", b"I7\n.", b"I" + b"1" * 25 + b"\n.", b"I" + b"1" * 26 + b"\n.", b"L7L\n.", b"S'a'\n.", b"S'a\n.", b"S'\n.",
    b"Sa\n.", b'S"a\\n"\n.',
    b"S" + b"'" + b"a" * 3000 + b"'\n.", b"F1.5\n.", b"M\x01\x02.", b"J\xff\xff\xff\xff.", b"\x8a\x01\xff.", b"\x8a\x00.",
    b"\x8a\x40" + b"\x01" * 64 + b".",
    b"\x8a\xff" + b"\x01" * 255 + b".", b"\x8b\xff\xff\xff\xff", b"U\x02ab.", b"U\x03ab.", b"T\xff\xff\xff\xff.",
    b"X\x02\x00\x00\x00\xc3\xbc.", b"B\x01\x00\x00\x00a.",
    b"K\x05q\x00h\x00\x86.", b"h\x00.", b"K\x05p0\ng0\n\x86.", b"p-1\n.", b"K\x05p-1\n.", b"(q\x00.", b"cos\nsystem\n.",
    b"cos\nsystem\n(tR.", b"cos\nsystem\nK\x01R.",
    b"K\x01)R.", b"ccollections\nOrderedDict\n)R.", b"ccollections\nOrderedDict\n(](K\x01K\x02\x86etR.",
    b"ccollections\nOrderedDict\n(](K\x01K\x02K\x03\x87etR.",
    b"ccollections\nOrderedDict\n(K\x01tR.", b"cos\nsystem\n)\x81.", b"cos\nsystem\n)R}b.", b"}}b.", b"]N\x93.",
    b"X\x01\x00\x00\x00aX\x01\x00\x00\x00b\x93.", b"\x80\x02N.",
    b"\x95\x00\x00\x00\x00\x00\x00\x00\x00N.", b"\xff.", REF + b".", b"(K\x01K\x02K\x03K\x04tQ.", b"(K\x01K\x02K\x03K\x04K\x05tQ.",
    b"K\x01Q.",
    BUILD + b"K\x00K\x02K\x03\x86K\x03K\x01\x86tR.", BUILD + b"K\x00K\x02K\x03\x86K\x03\x85tR.", BUILD + b"K\x00K\x02K\x03\x86tR.",
    BUILD + b"NK\x02K\x03\x86K\x03K\x01\x86tR.",
    BUILD + b"K\x00](K\x02K\x03eK\x03K\x01\x86tR.", BUILD + b"K\x00(" + b"K\x01" * 8 + b"t(" + b"K\x01" * 8 + b"ttR.",
    BUILD + b"K\x00(" + b"K\x01" * 9 + b"t(" + b"K\x01" * 9 + b"ttR.",
    b"ctorch._utils\n_rebuild_parameter\n(" + BUILD + b"K\x00K\x06\x85K\x01\x85tRN}tR.",
    b"}((K\x01tK\x02u.", b"}\x89N\x86.", b"\x88.", b"\x8f(K\x01\x90.", b"(K\x01\x91.", b"2.", b"K\x01" + b"2\x86.",
)  # fmt: skip


@producer
def pieces() -> Facts:
    """Tensors of each type in pieces of each size, from the cache and past it, whole and converted; files that end early."""
    draws = torch.Generator().manual_seed(3)
    tensors = {
        "f": torch.randn(5, 7, generator=draws),
        "h": torch.randn(9, generator=draws).half(),
        "b": torch.arange(11, dtype=torch.uint8),
        "d": torch.randn(3, 3, generator=draws).double(),
        "l": torch.arange(4),
        "one": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }
    with folder() as root:
        path = root / "a.safetensors"
        save_file(tensors, path)
        for most, direct in ((3, False), (8, False), (1 << 20, False), (1 << 20, True)):
            with patch.object(reading, "PIECE_BYTES", most), reading.TensorFile(path) as file:
                file._direct = direct  # without O_DIRECT: blocks, read from the cache
                same = [bool(torch.equal(file.read(name), each)) for name, each in tensors.items()]
                if most > 7:
                    same += [
                        bool(
                            torch.equal(
                                file.read(name, torch.bfloat16), each.bfloat16() if each.is_floating_point() else each
                            )
                        )
                        for name, each in tensors.items()
                    ]
                rows = []
                for name, numbers in (
                    ("f", 1),
                    ("f", 4),
                    ("f", 35),
                    ("f", 36),
                    ("h", 2),
                    ("d", 9),
                    ("l", 3),
                    ("none", 2),
                ):
                    for dtype in (torch.float32, torch.bfloat16):
                        entry_of = file.entries[name]
                        rows.append([[len(each), float(each.sum())] for each in file.pieces(entry_of, dtype, numbers)])
                yield f"read {most} {direct}", [same, rows, [file.outline(name) for name in tensors]]
        with reading.TensorFile(path) as file:
            f = file.entries["f"]
            views = {
                "row": TensorEntry("F32", (7,), f.start + 28, f.start + 56),
                "turned": TensorEntry("F32", (7, 5), f.start, f.stop, (1, 7)),
                "odd": TensorEntry("F16", (3,), file.entries["b"].start + 1, file.entries["b"].start + 7),
            }
            yield "views", [[file.read_entry(each), file.read_entry(each, torch.float16)] for each in views.values()]
        path.write_bytes(path.read_bytes()[:-3])
        found: list[Callable[[], Any]] = []
        with suppress(Exception):
            found.append(lambda: reading.TensorFile(path))
        yield "cut", [refused(each) for each in found]
        beside(path, b"")
        yield (
            "sliced",
            [
                [each.tolist() for each in reading.sliced(torch.arange(6).reshape(2, 3), numbers)]
                for numbers in (1, 4, 6, 7)
            ],
        )


@producer
def poses() -> Facts:
    """Peaks and people in noisy maps, regions of boxes, crops, letterboxes and inputs."""
    draws = np.random.default_rng(7)
    high, wide, size = 24, 32, (256, 192)
    y, x = np.mgrid[:high, :wide]
    for case in range(4):
        heat, fields = np.full((19, high, wide), 1e-3), np.zeros((38, high, wide))
        people = [draws.uniform(3, 20, (18, 2)) * (1.3, 1) for _ in range(1 + case % 3)]
        for person in people:
            for each, (px, py) in enumerate(person):
                heat[each] = np.maximum(
                    heat[each], draws.uniform(0.08, 1) * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 1.6)
                )
            for (first, second), channel in zip(bottom_up.MATCHED, bottom_up.FIELDS, strict=True):
                way = person[second] - person[first]
                steps = person[first] + way * np.linspace(0, 1, 40)[:, None]
                for px, py in steps.round().astype(int):
                    fields[channel : channel + 2, max(0, py - 1) : py + 2, max(0, px - 1) : px + 2] = (
                        way / np.hypot(*way)
                    )[:, None, None]
        inner = (256, 192 - 40 * (case % 2))
        peaks = [bottom_up.peaks_of(each, size, inner) for each in heat[:18]]
        bodies = list(bottom_up.bodies_of(peaks, fields, size, inner[1]))
        rounded = [np.nan_to_num(each, nan=-1) for each in bodies]
        yield f"people {case}", [[each for each in peaks], rounded]
        limbs = [
            list(bottom_up._limbs(peaks[a], peaks[b], fields[c : c + 2], size, inner[1]))
            for (a, b), c in zip(LIMBS, bottom_up.FIELDS)
        ]
        yield f"limbs {case}", [[[*each] for each in rows] for rows in limbs]
    image = np.asarray(smooth(40, 30))
    for box in ((0, 0, 40, 30), (10, 5, 20, 28), (-5, -5, 8, 40), (12, 12, 12, 13)):
        for target in ((24, 32), (32, 24)):
            center, extent = top_down.region_of(np.array(box, float), target)
            crop = top_down.cropped(image, center, extent, target)
            yield (
                f"crop {box} {target}",
                [
                    center,
                    extent,
                    crop.shape,
                    int(crop.sum()) // 2000,
                    [int(each) // 8 for each in crop[::11, ::11, 0].reshape(-1)],
                ],
            )
    for target in ((64, 64), (20, 60), (400, 10)):
        pixels, scale = one_image.letterboxed(image, target, 128)
        yield f"letterbox {target}", [pixels.shape, round(scale, 4), int((pixels == 128).all(2).sum())]
    for options in (
        {},
        {"channels": "BGR"},
        {"scale": "255"},
        {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 1)},
        {"scale": "255", "mean": (1, 1, 1)},
    ):
        profile = models.Profile(**options)
        yield (
            f"input {options}",
            [one_image.normalized(image, profile), profile.over({"size": 100, "scale": "1"}).scale],
        )
    points = draws.uniform(0, 99, (133, 2))
    points[[5, 7, 100]] = np.nan
    for options, count in (({}, 17), ({}, 26), ({}, 133), ({"hands": False}, 133), ({"face": False}, 133)):
        person = person_of(points[:count].copy(), models.Profile(**options))
        parts = [person.body, *person.hands, *([] if person.face is None else [person.face])]
        yield f"person {options} {count}", [[each.shape, np.nan_to_num(each, nan=-1)] for each in parts]
    along = draws.random((2, 3, 48))
    yield "located", list(top_down.keypoints_of(along[0], along[1], np.array([5.0, 6.0]), np.array([10.0, 20.0])))
    yield from sizes()


def sizes() -> Facts:
    """The input sizes of models that leave sides open, and which outputs are x and y."""

    def model(kind: type, **values: Any) -> Any:
        made = object.__new__(kind)
        made._title, made._where = "m", "here"
        for key, each in values.items():
            setattr(made, key, each)
        return made

    profile = models.Profile(size=100, multiple=32)
    for width, height in ((100, 100), (100, 250), (4096, 100), (100, 4112), (100, 4113), (5000, 3000), (17, 23)):
        found = refused(partial(model(top_down.DWPose, fixed=None).size_for, width, height, profile))
        yield f"size {width} {height}", found
    yield "fixed", model(top_down.DWPose, fixed=(3, 4)).size_for(9, 9, profile)
    for first, second in (
        ([1, 17, 384], [1, 17, 512]),
        ([1, 17, 512], [1, 17, 384]),
        ([1, 18, 384], [1, 18, 512]),
        ([1, 17, 96], [1, 17, 128]),
        ([2, 17, 384], [2, 17, 512]),
        ([1, 17, 95], [1, 17, 128]),
        ([1, 17], [1, 17]),
        ([1, 17, 384], [1, 26, 512]),
        ([1, 133, 192], [1, 133, 256]),
    ):
        yield f"axes {first} {second}", refused(model(top_down.DWPose, _size=(96, 128), batch=1)._axes, [first, second])
    for shapes in (
        [[1, 19, 4, 4], [1, 38, 4, 4]],
        [[1, 38, 4, 4], [1, 19, 4, 4], [1, 38, 4, 4]],
        [[1, 19, 4, 4]],
        [[1, 19, 4], [1, 38, 4, 4]],
        [[1, 19, 4, 0], [1, 38, 4, 4]],
        [[2, 19, 4, 4], [1, 38, 4, 4]],
    ):
        yield f"maps {shapes}", refused(model(bottom_up.OpenPose, batch=1)._maps, shapes)
    inputs: tuple[tuple[str, list[Any]], ...] = (
        ("tensor(float)", [1, 3, 64, 48]), ("tensor(float)", ["n", 3, "h", "w"]), ("tensor(float16)", [1, 64, 48, 3]), ("tensor(uint8)",
        [1, 3, 64, 48]), ("tensor(float)", [1, 4, 64, 48]),
        ("tensor(float)", [1, 3, 64]), ("tensor(float)", [1, 3, 3, 3]), ("tensor(float)", [0, 3, -1, 48]), ("tensor(float)", [1, 3, 4096,
        4096]), ("tensor(float)", [1, 3, 4097, 64]),
        ("tensor(float)", [5, 3, 4096, 4096]), ("tensor(float)", [6, 3, 4096, 4096]),
    )  # fmt: skip
    for kind, shape in inputs:
        process = type("Process", (), {"inputs": [["x", kind, shape]]})()
        yield f"takes {kind} {shape}", refused(model(top_down.DWPose, _model=process)._input, (192, 256))


class Session:
    """An ONNX session of a formula."""

    def __init__(self, model: str, sess_options: Any, providers: list[Any]):
        self.options, self.providers = sess_options, providers
        if model == "bad":
            raise ValueError("first line\nsecond")
        if model == "empty":
            raise ValueError

    def get_providers(self) -> list[str]:
        return [each if isinstance(each, str) else each[0] for each in self.providers]

    def get_session_options(self) -> Any:
        return self.options

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map={"tags": "a,b"})

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=[1, 3])]

    get_outputs = get_inputs

    def run(self, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [feeds["x"] + 1, feeds["x"].astype(int), np.repeat(feeds["x"], 50, axis=0), feeds["x"] * 2]


@producer
def runners() -> Facts:
    """What the process of an ONNX model answers, and which outputs it writes."""
    library = SimpleNamespace(SessionOptions=lambda: SimpleNamespace(), InferenceSession=Session)
    with (
        folder() as root,
        patch.object(onnx_runner, "onnxruntime", lambda providers: library),
        patch.object(onnx_runner, "MAX_INPUT", 8 * 24 + 24),
    ):
        runner = onnx_runner.Runner(root)
        np.arange(6, dtype=np.float32).tofile(root / onnx_runner.IMAGES)
        for model in ("m", "bad", "empty"):
            answer = runner.answer(
                {"open": {"model": model, "providers": ["CPUExecutionProvider"], "device": "cpu", "threads": 2}}
            )
            yield f"open {model}", {key: each if key != "error" else len(each) for key, each in answer.items()}
        yield "level", runner._session.options.log_severity_level
        ran = runner.answer(
            {"run": {"name": "x", "outputs": ["a", "b", "c", "d"], "dtype": "float32", "shape": [2, 3]}}
        )
        yield "ran", [ran, {each.name: np.load(each) for each in sorted(root.glob("*.npy"))}]
        yield "shape", list(runner.answer({"run": {"name": "x", "outputs": [], "dtype": "float32", "shape": [9, 9]}}))


@producer
def chunked() -> Facts:
    """Files written in chunks by parts in any order, past the cache until a drive refuses, and how they end."""
    with (
        folder() as root,
        patch.object(chunks, "CHUNK_BYTES", 2 * chunks.BLOCK_BYTES),
        patch.object(chunks, "bypass_cache", lambda handle: False),
    ):
        for size, failing in (
            (10, ()),
            (chunks.BLOCK_BYTES * 5 + 7, ()),
            (chunks.BLOCK_BYTES * 5 + 7, (0,)),
            (chunks.BLOCK_BYTES * 5 + 7, (0, 1)),
        ):
            data = torch.arange(size).remainder(251).to(torch.uint8)
            calls: list[int] = []
            real = chunks.ChunkedFile._write_at

            def refusing(
                self: Any,
                content: memoryview,
                offset: int,
                calls: list[int] = calls,
                failing: tuple[int, ...] = failing,
                real: Any = real,
            ) -> int:
                calls.append(len(content))
                if len(calls) - 1 in failing:
                    raise OSError(22, "no")
                return real(self, content, offset)

            def written(data: torch.Tensor = data, size: int = size) -> Any:
                with chunks.ChunkedFile(root / "f", size) as writer:
                    writer._direct = True  # as on a drive with larger blocks
                    cut = size * 2 // 3
                    writer.put(cut, data[cut:])
                    writer.put(0, data[:cut])
                return [(root / "f").read_bytes() == bytes(data.tolist()), writer._direct]

            with patch.object(chunks.ChunkedFile, "_write_at", refusing):
                yield f"written {size} {failing}", [refused(written), calls]
        yield "blocks", [chunks._blocks(size) for size in (0, 1, chunks.BLOCK_BYTES, chunks.BLOCK_BYTES + 1)]
