"""Caches of latents, texts, masks and control images: what is encoded, kept, named and deleted."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from core.dataset.buckets.batches import Placed
from core.dataset.caches import contents, npz, partners, store
from core.dataset.caches.encoding import Side, batches_of, sides
from core.dataset.caches.late import LatePosteriors
from core.dataset.caches.latents import LatentCache, sd_latent_shape
from core.dataset.caches.texts import TextCache
from core.dataset.images.views import View
from core.dataset.sources.memo import Memo
from core.diffusion.text_states import TextStates
from core.record import machine
from core.record.space import RESERVE
from core.training.building import latents as building
from tests.facts.pixels import concept, placed
from tests.facts.samples import beside, noise, smooth, write
from tests.facts.store import Facts, folder, producer, refused


class Encoder:
    """An eighth of the pixels as mean; counts its batches. bad: batches whose result is not finite."""

    def __init__(self, bad: tuple[int, ...] = ()):
        self.batches: list[Any] = []
        self.bad = bad

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append(list(pixels.shape))
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean.mean(1, keepdim=True)], 1)
        if len(self.batches) - 1 in self.bad:
            mean = mean + float("nan")
        return mean, mean.abs() - 3


def images(root: Path, **options: Any) -> list[Placed]:
    """Five images, two of them alike, in three buckets."""
    where = concept(resolution=64, bucket_reso_steps=32, **options)
    found = []
    for number, size in enumerate(((64, 64), (64, 64), (96, 40), (64, 64), (40, 90))):
        path = write(root / f"{number}.bmp", smooth(*size, 0 if number == 3 else number))
        state = path.stat()
        each = placed(path, *size, number, concept=where)
        found.append(replace(each, image=replace(each.image, bytes=state.st_size, mtime_ns=state.st_mtime_ns)))
    return found


def names_in(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*.safetensors"))


@producer
def latents() -> Facts:
    """What a latent cache encodes, in which batches, and the names of its entries."""
    with folder() as root:
        for options, size in (
            ({}, 1),
            ({"flip_aug": True}, 2),
            ({"alpha_color": "#102030", "resize_interpolation": "box"}, 4),
        ):
            items = images(root / "images", **options)
            memo = root / f"{size}.sqlite"
            cache = LatentCache(root / f"cache {size}", "vae", memo_path=memo)
            encoder, done = Encoder(), []
            counts = [len(cache.missing_sides(items)), len(cache.missing(items))]
            filled = cache.fill(items, encoder, batch_size=size, progress=lambda *each, done=done: done.append(each))
            read = [cache.read(side) for each in items for side in sides(each)]
            yield f"filled {options}", [counts, filled, encoder.batches, done, names_in(cache.folder), read]
            again = Encoder()
            yield f"again {options}", [cache.fill(items, again), again.batches, cache.missing_sides(items, reads=False)]
            yield (
                f"batches {options}",
                [
                    [side.placed.image.path.name for side in each]
                    for each in batches_of([side for each in items for side in sides(each)], size)
                ],
            )
        items = images(root / "images")
        names = []
        for changed in ({"vae_id": "other"}, {"dtype": "fp16"}, {}):
            cache = LatentCache(root / "n", **{"vae_id": "vae", **changed})
            names.append(cache.file(Side(items[0])).name)
        yield (
            "names",
            [*names, cache.file(Side(items[0], True)).name, cache.bytes_of(items[0]), sd_latent_shape((96, 40))],
        )
        heard: list[Any] = []
        cache = LatentCache(root / "bad", "vae", warn=heard.append)
        encoder = Encoder(bad=(1, 3))
        yield "not finite", [refused(lambda: cache.fill(items, encoder, batch_size=2)), len(names_in(cache.folder))]
        yield "retried", [cache.fill(items, Encoder(bad=(0,)), retry=Encoder()), len(names_in(cache.folder))]
        for path in sorted(cache.folder.rglob("*.safetensors"))[:2]:
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
        yield (
            "damaged",
            [
                [side.placed.image.path.name for side in cache.missing_sides(items)],
                len(heard),
                heard[0].code,
                heard[0].level,
            ],
        )
        memory = LatentCache(root / "memory", "vae", writes=False)
        yield "memory", [memory.fill(items, Encoder()), names_in(root / "memory"), memory.read(Side(items[2]))]
        write(items[0].image.path, noise(64, 64))
        edited = LatentCache(root / "edited", "vae", warn=heard.append)
        yield (
            "edited",
            [edited.fill(items[:2], Encoder()), len(names_in(root / "edited")), [each.code for each in heard[1:]]],
        )
        items = images(root / "late")
        whole = LatentCache(root / "late cache", "vae")
        encoder, done = Encoder(), []
        late = LatePosteriors(
            whole,
            encoder,
            whole.missing_sides(items),
            batch_size=2,
            progress=lambda *each: done.append(each),
            finished=lambda: done.append("end"),
        )
        late.decode_ahead([Side(each) for each in items])
        steps = [[late.waiting, late.get(Side(items[number]))[0]] for number in (4, 0, 2, 3, 1)]
        late.close()
        yield "late", [steps, late.waiting, encoder.batches, done]
        gone = replace(items[0], image=replace(items[0].image, path=root / "gone.bmp"))
        yield "gone", refused(lambda: LatentCache(root / "x", "vae").fill([gone], Encoder()))
        yield "unread", refused(lambda: LatentCache(root / "x", "vae").read(Side(items[0])))

        for free in (0, RESERVE, RESERVE + 50_000, 1 << 40):
            with patch.object(machine, "free_disk", lambda _, free=free: free):
                yield f"room {free}", [with_room(root / f"room {free}", items, writes) for writes in (True, False)]


def with_room(place: Path, items: list[Placed], writes: bool) -> list[Any]:
    """What a full disk lets be encoded before the steps, and by the steps."""
    before = LatentCache(place, "vae", writes=writes)
    late = LatentCache(place / "late", "vae", writes=writes)
    memory = SimpleNamespace(vae_batch_size=1)
    inputs: Any = SimpleNamespace(
        context=SimpleNamespace(device="cpu", check=lambda: None), job=SimpleNamespace(memory=memory)
    )

    def sides_of_steps() -> int:
        with patch.object(building, "encoders_fit", lambda *_: True):
            return len(building._sides_for_steps(inputs, None, late, items, at_once=False, keep_vae=True))

    return [refused(partial(before.fill, items, Encoder())), refused(sides_of_steps)]


@producer
def entries() -> Facts:
    """Cache files: their names, checks and which of them are deleted."""
    yield (
        "keys",
        [store.key_of(), store.key_of("a"), store.key_of("a", 1), store.key_of("a", "1"), store.key_of("a\x1f1")],
    )
    with folder() as root:
        for number in range(5):
            path = store.file_of(root, store.key_of(number))
            size = store.write_tensors(
                path, {"mean": torch.full((number + 1, 2), float(number)), "other": torch.ones(3)}
            )
            os.utime(path, (number, number))
        path, damaged = store.file_of(root, store.key_of(2)), list[Path]()
        shapes = ({}, {"mean": (3, 2)}, {"mean": (None, 2)}, {"mean": (2, 3)}, {"mean": (3,)}, {"gone": (1,)})
        yield "read", [size, [store.read_tensors(path, each, damaged) is not None for each in shapes], len(damaged)]
        yield (
            "dtypes",
            [
                store.read_tensors(path, {"mean": (3, 2)}, dtypes=each) is not None
                for each in (("F32",), ("F16",), ("U8", "F32"))
            ],
        )
        os.utime(path, (2, 2))
        yield "entries", [[each.used, each.bytes] for each in sorted(store.entries(root))]
        needed = {store.key_of(0)}
        freed = [store.prune(root, keep, needed) for keep in (10**6, 900, 600, 0)]
        yield "pruned", [freed, [each.bytes for each in sorted(store.entries(root))]]
        heard: list[Any] = []
        cache = TextCache(root, "clip", warn=heard.append)
        cache._damaged = [path, path]
        cache.report_damaged()
        cache.report_damaged()
        yield "told", heard
        memo = Memo(root / "memo.sqlite")
        facts = [contents.Path(root / name) for name in ("a", "b")]
        infos = [placed(beside(path, path.name), 64, 64).image for path in facts]
        infos = [replace(each, bytes=1, mtime_ns=5) for each in infos]
        hashes = [contents.file_hashes(infos, memo.path) for _ in range(2)]
        beside(infos[0].path, "z")
        changed = contents.file_hashes([replace(infos[0], mtime_ns=6), infos[1]], memo.path)
        yield (
            "hashes",
            [hashes[0], hashes[0] == hashes[1], changed, memo.known("other", infos), len(memo.known("sha256", infos))],
        )
        yield "gone", refused(lambda: contents.file_hashes([replace(infos[0], path=root / "none")]))


def states_of(caption: str) -> torch.Tensor:
    return torch.arange(24).reshape(4, 6) * (1 + len(caption)) / 7


@producer
def texts() -> Facts:
    """What a text cache encodes in which batches, holds in memory and writes."""
    captions = [f"caption {'x' * number}" for number in range(11)]
    with folder() as root:
        for name, options in {
            "usual": {},
            "little room": {"room_bytes": 300},
            "three at once": {"at_once": 3},
            "little disk": {"disk_bytes": 1500, "at_once": 4},
        }.items():
            heard, batches = list[Any](), list[Any]()

            def encode(these, batches=batches):
                batches.append([len(each) for each in these])
                return TextStates(torch.stack([states_of(each) for each in these]))

            cache = TextCache(root / name, "clip", warn=heard.append, **options)
            steps = [
                cache.ensure(captions[:9], encode),
                cache.missing(captions),
                cache.ensure(captions, encode),
                len(names_in(root / name)),
            ]
            got = [cache.get(captions[start : start + 3]).context for start in (0, 5, 8)] if "disk" not in name else []
            second = TextCache(root / name, "clip", warn=heard.append, **options)
            second.expect(captions)
            first_wait = second.waiting
            found = second.get([captions[10], captions[2]], encode).context
            for path in sorted((root / name).rglob("*.safetensors"))[:2]:
                path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
            third = TextCache(root / name, "clip", warn=heard.append, **options)
            again = third.ensure(captions, encode)
            yield (
                name,
                [
                    steps,
                    got,
                    [first_wait, second.waiting, found],
                    again,
                    [len(each) for each in batches],
                    batches[:2],
                    [each.code for each in heard],
                    len(names_in(root / name)),
                ],
            )
        keys = []
        for changed in ({}, {"clip_skip": 2}, {"clip_skip": 1}, {"max_token_length": 150}, {"dtype": "fp16"}):
            cache = TextCache(root / f"k{len(keys)}", "clip", **changed)
            cache.ensure(["a"], encode)
            keys += names_in(cache.folder)
        yield "keys", keys
        yield "missing", refused(lambda: TextCache(root / "m", "clip").get(["a"]))


@producer
def partner_caches() -> Facts:
    """Caches of masks and control images."""
    with folder() as root:
        items = []
        for number, name in enumerate(("half", "white", "noise")):
            path = write(root / f"{name}.bmp", smooth(64, 64, number))
            mask = {
                "half": smooth(64, 64).convert("L").point(lambda value: 255 * (value > 99)),
                "white": noise(64, 64).point(lambda value: 255),
            }.get(name, noise(32, 32, 4, 1))
            write(root / "masks" / f"{name}.bmp", mask.convert("RGB"))
            write(
                root / "control" / f"{name}.bmp",
                noise(64 if number else 32, 64 if number else 32, number, 1 if number == 2 else 3),
            )
            each = placed(
                path,
                64,
                64,
                number,
                concept=concept(resolution=64, masked_loss=True),
                conditioning=root / "masks" / f"{name}.bmp",
                control=root / "control" / f"{name}.bmp",
            )
            items.append(each)
        cache = partners.MaskCache(root / "cache")
        found = cache.load(items)
        yield (
            "masks",
            [
                {key[1].rpartition("/")[2]: value for key, value in found.items()},
                names_in(root / "cache"),
                cache.load(items).keys() == found.keys(),
            ],
        )
        other = partners.MaskCache(root / "other", latent_pixels=4)
        yield "other size", [[list(each.shape) for each in other.load(items).values()], names_in(root / "other")]
        control = partners.ControlCache(root / "control cache")
        done: list[Any] = []
        control.fill(items, progress=lambda *each: done.append(each))
        sums = [
            [int((control.load(each, View(each.placement, flip)) * 255).sum()) // 500 for flip in (False, True)]
            for each in items
        ]
        yield (
            "control",
            [sums, done, names_in(root / "control cache"), partners.memory_limit(True), partners.memory_limit(False)],
        )
        none = partners.ControlCache(root / "none", writes=False, held_bytes=0)
        none.fill(items)
        yield (
            "not held",
            [int((none.load(items[0], View(items[0].placement)) * 255).sum()) // 500, names_in(root / "none")],
        )
        gray, colored = np.full((3, 4, 6), 7, np.uint8), np.arange(72, dtype=np.uint8).reshape(3, 4, 6)
        packs = [partners.packed(each) for each in (gray, colored)]
        yield (
            "packed",
            [
                [partners.unpacked(each, size) for each in (*packs, b"no", b"")]
                for size in ((6, 4), (4, 6), (5, 4), (12, 6))
            ],
        )
        yield "pooled", partners.at_latent_size(np.arange(256, dtype=np.float32).reshape(1, 16, 16) / 255)
        yield (
            "sources",
            [
                partners.mask_source(replace(items[0], concept=concept(**each)))
                for each in ({}, {"masked_loss": True}, {"alpha_mask": True})
            ],
        )


@producer
def exported() -> Facts:
    """npz files of sd-scripts: written, read again, and why others do not fit."""
    with folder() as root:
        items = images(root, flip_aug=True, alpha_mask=True)
        sized = replace(items[0], variant="96x96")
        done = npz.export_npz(
            [*items, sized],
            lambda side: torch.full(
                (4, *[each // 8 for each in side.placed.placement.bucket[::-1]]), float(side.flipped)
            ),
            lambda each: np.ones((1, 8, 8)),
        )
        yield (
            "written",
            [done, [{name: value for name, value in np.load(root / f"{each}.npz").items()} for each in (0, 2)]],
        )
        again = npz.export_npz(items[:2], lambda side: None, lambda each: None)
        caches = npz.NpzCaches(items)
        yield (
            "read",
            [
                again,
                [[None if (found := caches(side)) is None else found for side in sides(each)] for each in items[1:4]],
                [len(each) for each in caches.log_lines()],
            ],
        )
        shape = (4, 8, 8)
        forms = {
            "bare": {"arr_0": np.ones(shape)},
            "other size": {"latents": np.ones((4, 8, 9))},
            "infinite": {"latents": np.full(shape, np.inf), "latents_flipped": np.ones(shape)},
            "no flip": {"latents": np.ones(shape)},
            "sized": {"latents_8x8": np.ones(shape), "latents_flipped_8x8": np.ones(shape)},
            "other image": {
                "latents": np.ones(shape),
                "latents_flipped": np.ones(shape),
                "original_size": np.array([65, 64]),
            },
            "pair": {"latents": np.ones(shape), "original_size": np.array([64])},
            "words": {"latents": np.array(["a"])},
        }
        for name, arrays in forms.items():
            npz.write_npz(root / "1.npz", arrays)
            found, refusals = npz.NpzCaches(items[:2]), npz.NpzCaches(items[:2])
            refusals._kind = "x"
            result = [found(side) for side in sides(items[1])]
            yield (
                name,
                [
                    result,
                    sorted(found.refused),
                    [any(sign.isdigit() for sign in why) for why in found.refused.values()],
                ],
            )
        yield "endings", [npz.with_ending(root / "a.b", each) for each in (".npz", "_flip.npz")]
