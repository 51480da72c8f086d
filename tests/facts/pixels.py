"""Buckets, crops and resizes of images, their colors and measurements, masks and control images."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from core.dataset.buckets import aspect_ratio, length, placing, plan, validation_split
from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import Caption
from core.dataset.images import colors, look, masks, opening, painting, pixels, resize, thumbnails, views
from core.dataset.sources.image_info import ImageInfo
from core.record import draws
from core.settings.dataset.concepts import PLAIN, Concept
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import Source
from core.settings.optimization.schedule import ScheduleSettings
from tests.facts.samples import noise, quarters, smooth, write
from tests.facts.store import Facts, digest, folder, plain, producer, refused

SIZES = [
    (512, 512),
    (640, 480),
    (480, 640),
    (1920, 1080),
    (1080, 1920),
    (100, 90),
    (90, 100),
    (4000, 300),
    (300, 4000),
    (64, 64),
]
SIZES += [
    (513, 511),
    (777, 1024),
    (255, 256),
    (1000, 8),
    (8, 1000),
    (1, 900),
    (3000, 2000),
    (768, 512),
    (703, 512),
    (384, 682),
]
BUCKETS = [
    {},
    {"resolution": 1024},
    {"resolution": (768, 512)},
    {"resolution": 100},
    {"resolution": 512, "bucket_reso_steps": 32},
    {"resolution": 640, "min_bucket_reso": 320, "max_bucket_reso": 960},
    {"resolution": 512, "min_bucket_reso": 300, "max_bucket_reso": 1000},
    {"resolution": 512, "min_bucket_reso": 512},
    {"resolution": 512, "min_bucket_reso": 511, "bucket_reso_steps": 8},
    {"resolution": 512, "max_bucket_reso": 512},
    {"resolution": 512, "max_bucket_reso": 448},
    {"resolution": 64, "bucket_reso_steps": 128},
    {"resolution": 512, "bucket_no_upscale": True},
    {"resolution": 200, "bucket_no_upscale": True, "bucket_reso_steps": 8},
    {"resolution": 515, "enable_bucket": False},
    {"resolution": (520, 300), "enable_bucket": False},
]


@producer
def buckets() -> Facts:
    """The bucket tables of settings, and where images of many sizes go."""
    for options in BUCKETS:

        def tables(options=options):
            made = aspect_ratio.plan_buckets(ImageSettings(**options))
            places = [made.assign(*size) for size in SIZES]
            rows = [
                each and (each.bucket, each.resized, each.crop, each.scale, each.area_after_crop, each.frame)
                for each in places
            ]
            return [len(made.sizes), digest(made.sizes), made.sizes[:2], made.area, made.step, made.advice, rows]

        yield str(options), refused(tables)
    yield "limits", [aspect_ratio.rounded_limits(*each) for each in product((1, 63, 64, 65), (511, 512, 513), (8, 64))]
    yield "recorded crops", [views.recorded_crop((512, 448), size) for size in SIZES]


def placed(
    path: Path, width: int, height: int, number: int = 0, repeats: int = 1, concept: Concept = PLAIN, **more
) -> Placed:
    image = ImageInfo(
        "fox",
        path.as_posix(),
        path,
        width,
        height,
        1000 + number // 2,
        1,
        repeats=repeats,
        concept=concept.number,
        **more,
    )
    where = aspect_ratio.plan_buckets(concept.images).assign(width, height)
    assert where is not None
    return Placed(image, where, Caption(f"fox {number}", "file", path.with_suffix(".txt")), concept)


def concept(number: int = 0, source: dict | None = None, **options) -> Concept:
    settings = ImageSettings(**{"resolution": 256, "bucket_reso_steps": 64, "min_bucket_reso": 128, **options})
    return replace(PLAIN, number=number, source=Source(folder="x", **(source or {})), images=settings)


def members(groups: list[Concept]) -> list[Placed]:
    shapes = [(256, 256), (256, 256), (320, 192), (192, 320), (512, 128), (256, 250), (200, 330)]
    return [
        placed(Path(f"{each.number}_{n}.png"), *shapes[(n * 3 + each.number) % len(shapes)], n, 1 + n % 3, each)
        for each in groups
        for n in range(9 - 2 * each.number)
    ]


GROUPS = {
    "one": [concept(train_batch_size=2)],
    "balanced": [concept(train_batch_size=3), concept(1, {"role": "regularization"}, train_batch_size=3)],
    "many regularization": [concept(2), concept(0, {"role": "regularization"})],
    "in turn": [concept(0, {"samples_per_epoch": 5}, train_batch_size=2), concept(1, {"samples_per_epoch": 11})],
    "apart": [
        concept(0, {"batch_group": "a"}, train_batch_size=4),
        concept(1, {"batch_group": "b"}, network_multiplier=2),
    ],
    "weights": [concept(0, {"loss_weight": 0.5}), concept(1, {"loss_weight": 3, "role": "regularization"})],
}


@producer
def orders() -> Facts:
    """The batches of three epochs, counted and built, with each treatment of incomplete batches."""
    for name, groups in GROUPS.items():
        images = members(groups)
        for short, balance, accumulation, processes in (
            ("keep", "rotate", 1, 1),
            ("refill", "rotate", 2, 1),
            ("drop", "kohya", 1, 2),
            ("merge", "kohya", 3, 1),
        ):
            settings = DatasetSettings(short_batches=short, reg_balance=balance, prior_loss_weight=0.25)
            used = placing.merged(images, processes) if short == "merge" else images
            made = plan.Epochs(used, settings, accumulation, processes)
            batches = [made.batches(7, epoch) for epoch in range(3)] if made.views else []
            shown = [[[each.key[1], n] for each, n in batch.items] for batches_of in batches for batch in batches_of]
            lengths = [
                length.length_of(ScheduleSettings(**options), made)
                for options in (
                    {},
                    {"max_train_epochs": 3},
                    {"max_train_steps": 7},
                    {"max_train_epochs": 2, "max_train_steps": 50},
                )
            ]
            known = len({each.image.key for each in images})
            yield (
                f"{name} {short} {balance} {accumulation} {processes}",
                [
                    [made.views, made.batch_sizes, made.steady, [made.batches_in(n) for n in range(3)]],
                    [[made.steps_in(n), made.first_step(n)] for n in range(4)],
                    [made.epoch_of(step) for step in range(0, 40, 3)] if made.steps_in(0) else [],
                    [[each.key[1] for each in part] for part in (made.never_used(), made.unneeded())],
                    shown[0] if shown else [],
                    digest([[batch.bucket for each in batches for batch in each], shown]),
                    [len(each) for each in made.groups(7, 1)] if made.views else [],
                    lengths,
                    [
                        "".join(filter(str.isdigit, length.length_sentence(each, made, known, accumulation)))
                        for each in lengths
                    ],
                    [each.loss_weight(settings) for each in (images[0], images[-1])],
                ],
            )
    yield (
        "advised",
        [
            length.advised_epochs(*each)
            for each in product((0, 1, 14, 15, 16, 30, 150, 299, 300, 301, 5000), (1, 4, 64))
        ],
    )
    yield "advised batches", [length.advised_epochs(20, 4, each) for each in (1, 2, 7, 99, 100, 101)]


@producer
def placings() -> Facts:
    """Placing at several resolutions, with buckets of a metadata file, and what is refused."""
    groups = [
        concept(more_resolutions=[128, (320, 256), 256]),
        concept(1, resolution=256, bucket_no_upscale=True, more_resolutions=[512]),
        concept(2, resolution=64, bucket_reso_steps=128),
        concept(3, {"metadata_file": "m.json"}),
        concept(4, {"metadata_file": "n.json"}, resolution=256, min_bucket_reso=200),
    ]
    images = [
        ImageInfo(
            "s",
            f"{n}.png",
            Path(f"{n}.png"),
            *size,
            5,
            1,
            concept=n % 5,
            metadata_bucket=(64 * (1 + n % 4), 128) if n % 5 == 3 else None,
        )
        for n, size in enumerate(SIZES)
    ]
    for merge, level in ((False, "error"), (True, "advice")):
        out = frozenset(each.key for each in images[5:7])
        found = placing.place(
            images, groups, lambda image: Caption("", "none", image.path), held_out=out, merge=merge, level=level
        )
        rows = [[each.key, each.placement.bucket, each.placement.resized, each.placement.crop] for each in found.placed]
        yield f"{merge} {level}", [rows, [each.key for each in found.validation], [list(found.refused), found.problems]]


@producer
def held_out() -> Facts:
    """The images of the validation split."""
    yield (
        "automatic",
        [validation_split.automatic_count(each) for each in (0, 39, 40, 41, 83, 84, 500, 516, 517, 550, 551, 5000)],
    )
    for options, counts, share in (
        ({}, (45, 12, 1), 0.0),
        ({}, (39,), 0.0),
        ({}, (10, 4), 0.3),
        ({"role": "validation"}, (3, 50), 0.0),
        ({"validation_images": ["1.bmp", "0/2.bmp"]}, (5, 6), 0.0),
        ({"role": "regularization"}, (4, 70), 0.0),
        ({}, (6,), 1.0),
        ({}, (2, 1), 0.05),
    ):
        groups = [concept(number, options if number == 0 else {}) for number in range(len(counts))]
        groups = [
            replace(each, validation=each.validation.model_copy(update={"validation_split": share})) for each in groups
        ]
        images = [
            ImageInfo(f"s{group}", f"{group}/{n}.bmp", Path(f"s{group}/{n}.bmp"), 8, 8, 100 + n // 2, 1, concept=group)
            for group, count in enumerate(counts)
            for n in range(count)
        ]

        def contents(wanted):
            return {each.key: digest(each.relative if each.bytes % 3 else each.bytes) for each in wanted}

        found = [sorted(validation_split.held_out(images, groups, contents, seed)) for seed in (0, 3)]
        yield f"{options} {counts} {share}", [["/".join(key) for key in each] for each in found]


@producer
def augmented() -> Facts:
    """The views of an image by epoch and repeat, and SDXL's size conditioning of each."""
    for options in (
        {},
        {"flip_aug": True},
        {"random_crop": True},
        {"color_aug": True},
        {"flip_aug": True, "random_crop": True, "color_aug": True},
        {"face_crop_aug_range": (1.2, 3.0), "enable_bucket": False},
        {"face_crop_aug_range": (2.0, 2.0), "enable_bucket": False, "random_crop": True},
        {"face_crop_aug_range": (0.5, 8.0), "enable_bucket": False, "flip_aug": True},
    ):
        where = concept(**options)
        rows = []
        for name, size in (
            ("a.png", (300, 200)),
            ("b_0100_0080_0060_0040.png", (300, 200)),
            ("c_900_40_300_350.png", (1200, 500)),
        ):
            each = placed(Path(name), *size, concept=where)
            for epoch, repeat in product(range(3), range(2)):
                view = views.draw_view(each, 4, epoch, repeat)
                sizes = [views.size_conditioning(each, view, mode)[1] for mode in ("true", "kohya")]
                rows.append([view.placement.resized, view.placement.crop, view.flip, view.hue, view.gamma, sizes])
        yield str(options), [views.is_varied(where.images), views.crop_varies(where.images), rows]
    names = (
        "a_1_2_3_4.png",
        "a_1_2_0_4.png",
        "_1_2_3_4.png",
        "a_1_2_3.png",
        "b/a_10_20_30_40.x.png",
        "a_1_2_3_4_5.png",
    )
    yield "faces", [views.face_of(name) for name in names]
    yield "draws", [draws.address(1, "a", 2, "b"), draws.uniform(1, "a", 2), draws.python_random(1, "x").random()]


@producer
def resized() -> Facts:
    """Images at other sizes by each filter, as the sums of their quarters."""
    sources = {"smooth": smooth(40, 24), "noise": noise(17, 29, 3), "gray": noise(20, 20, 1, 1)}
    for (name, image), size in product(
        sources.items(), ((40, 24), (20, 12), (13, 7), (60, 50), (80, 10), (7, 40), (1, 1))
    ):
        found = {each: quarters(resize.resize(image, size, each)) for each in ("auto", "area", "nearest", "box")}
        yield f"{name} {size}", found
        if name == "smooth":
            soft = [
                np.asarray(resize.resize(image, size, each), "float32") for each in ("lanczos", "bilinear", "bicubic")
            ]
            yield f"{name} {size} soft", [plain(each.mean() // 1) for each in soft]
    image = smooth(50, 40)
    for size, flip, mode in product(((64, 64), (32, 48)), (False, True), ("auto", "box")):
        yield (
            f"view {size} {flip} {mode}",
            quarters(pixels.in_view(image, aspect_ratio.fit_to_bucket((50, 40), size), flip, mode)),
        )
    array = np.asarray(image).astype(np.float32)
    for hue, gamma in product((0, 3.5, -8), (1, 0.95, 1.05)):
        yield f"colors {hue} {gamma}", pixels.change_colors(array, hue, gamma)
    yield "training", pixels.as_training(array)
    yield "enough", pixels.reduced_size(aspect_ratio.fit_to_bucket((500, 400), (64, 64)))


FORMATS = {
    "bmp": {},
    "png": {},
    "tiff": {},
    "webp": {"lossless": True},
    "gif": {},
    "ppm": {},
    "tga": {},
    "pcx": {},
    "jpg": {"quality": 95},
}


@producer
def opened() -> Facts:
    """Headers, colors and alpha of files in each format, mode and orientation; what is wrong with damaged ones."""
    with folder() as root:
        for ending, options in FORMATS.items():
            path = write(root / f"a.{ending}", noise(12, 8, 2), **options)
            sums = (
                [each // 50 for each in quarters(opening.open_rgb(path))]
                if ending in ("gif", "jpg")
                else quarters(opening.open_rgb(path))
            )
            yield ending, [opening.read_header(path), sums]
        shades = noise(10, 6, 5, 1)
        deep = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
        modes = {
            "L": shades,
            "LA": Image.merge("LA", (shades, noise(10, 6, 6, 1))),
            "RGBA": noise(10, 6, 7, 4),
            "opaque": Image.merge("RGBA", (*noise(10, 6, 1).split(), Image.new("L", (10, 6), 255))),
            "P": noise(10, 6, 8).quantize(16, method=Image.Quantize.FASTOCTREE),
            "1": shades.convert("1"),
            "I;16": Image.fromarray(deep),
        }
        for mode, image in modes.items():
            path = write(root / f"{mode[:2]}.png", image)
            found = opening.open_decoded(path)
            on = [quarters(found.on(color)) for color in (colors.WHITE, colors.BLACK, (10, 200, 30))]
            yield mode, [opening.read_header(path), found.size, found.alpha and quarters(found.alpha), on]
        for mode, values in (
            ("F", [0.0, 0.5, 1.0, 3.0]),
            ("F", [0.0, 0.2, 0.9, 1.0]),
            ("I", [0, 100, 255, 200]),
            ("I", [0, 500, 65535, 9]),
        ):
            image = Image.new(mode, (2, 2))
            image.putdata(values)
            made, alpha = colors.to_srgb(image)
            yield f"{mode} {values}", [np.asarray(made).reshape(-1, 3).tolist(), alpha]
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = write(root / f"o{orientation}.png", noise(9, 5, 4), exif=exif)
            yield f"orientation {orientation}", [opening.read_header(path), quarters(opening.open_rgb(path))]
        moving = root / "moving.gif"
        noise(8, 8).save(moving, save_all=True, append_images=[noise(8, 8, 1)])
        yield "animated", opening.read_header(moving)
        whole = write(root / "w.png", noise(64, 64)).read_bytes()
        for name, data in {
            "empty": b"",
            "cut": whole[:200],
            "half": whole[: len(whole) // 2],
            "text": b"<html>",
            "jpeg": b"\xff\xd8\xff",
        }.items():
            (root / "broken.png").write_bytes(data)

            def failure(read):
                try:
                    return read(root / "broken.png")
                except opening.BrokenImage as error:
                    return [type(error).__name__, opening.problem_of(root / "broken.png", error), str(error)[:12]]

            yield f"broken {name}", [failure(opening.read_header), failure(lambda path: opening.open_rgb(path).size)]
        yield "color", [colors.color_of(each) for each in ("#ff8000", "#000000", "#FFfe01")]
        path = write(root / "large.bmp", smooth(300, 200))
        small = thumbnails.thumbnail(path, 64, root / "thumbs")
        with Image.open(small) as thumb:
            yield (
                "thumbnail",
                [thumb.size, thumb.format, len(Path(small).stem), Path(small).parent.name == Path(small).stem[:2]],
            )


@producer
def measured() -> Facts:
    """Measurements of images: the hash, sharpness and borders."""
    framed = Image.new("RGB", (60, 40), (10, 20, 30))
    framed.paste(smooth(40, 30), (10, 5))
    barred = Image.new("RGB", (60, 40))
    barred.paste(noise(60, 20), (0, 10))
    images = {
        "plain": Image.new("RGB", (50, 40), (7, 7, 7)),
        "framed": framed,
        "barred": barred,
        "smooth": smooth(90, 70),
        "noise": noise(40, 40),
        "blurred": noise(64, 64).filter(ImageFilter.BoxBlur(3)),
        "tiny": noise(2, 2),
        "long": smooth(600, 80),
    }
    for name, image in images.items():
        found = look.measure(image, transparent=name == "noise")
        assert look.from_text(look.to_text(found)) == found
        soft = name in ("long", "smooth", "framed")  # the hash of even areas hangs on the last bit of a filter
        yield name, [found.transparent, "" if soft else found.dhash, found.blur, found.border]
    yield "from text", [look.from_text(text) for text in ("", "{}", "[]", '{"blur": 2}', '{"x": 1}', "null")]
    yield "reasons", look.reasons_of({("a", "b"): look.Look("is gone"), ("a", "c"): look.Look()})


@producer
def partners() -> Facts:
    """Masks and control images in the views of their images."""
    with folder() as root:
        path = write(root / "a.png", noise(48, 32, 1, 4))
        mask = write(root / "m.png", noise(48, 32, 2, 1).convert("RGB"))
        half = write(root / "h.png", smooth(24, 16))
        for options, kind in product(
            ({}, {"masked_loss": True}, {"alpha_mask": True}, {"masked_loss": True, "alpha_mask": True}),
            (mask, half, None),
        ):
            where = concept(resolution=64, **options)
            each = placed(path, 48, 32, concept=where, conditioning=kind)
            found = [masks.load_mask(each, views.View(each.placement, flip)) for flip in (False, True)]
            yield f"mask {options} {kind and kind.name}", [None if value is None else value.round(2) for value in found]
        for fit, chosen, bucketed in product(
            ("aligned", "stretched", "area"), (None, "area", "lanczos", "nearest"), (True, False)
        ):
            where = replace(
                concept(resolution=64, control_interpolation=chosen, enable_bucket=bucketed), control_fit=fit
            )
            each = placed(path, 48, 32, concept=where, control=half)
            found = [masks.load_control(each, views.View(each.placement, flip)) for flip in (False, True)]
            sums = [
                [int(value.sum() * 255) // 200, int(value[:, :8].sum() * 255) // 100]
                for value in found
                if value is not None
            ]
            sizes = [masks.is_resized(size, each) for size in ((24, 16), each.placement.bucket, each.placement.resized)]
            yield f"control {fit} {chosen} {bucketed}", [masks.control_filter(where), sizes, sums]
        yield (
            "sample",
            [
                int(masks.control_for(half, size, stretched).sum())
                for size in ((64, 64), (24, 16))
                for stretched in (False, True)
            ],
        )
        info = placed(path, 48, 32, conditioning=half).image
        for painted, readable in ((None, True), (mask, True), (None, False)):
            start = painting.initial_mask(info, painted, lambda path, readable=readable: readable)
            yield (
                f"start {painted and painted.name} {readable}",
                [start.origin, start.mask and [start.mask.size, sum(quarters(start.mask)) // 100]],
            )
        data = BytesIO()
        noise(48, 32, 2, 4).save(data, "PNG")
        yield (
            "decoded",
            [
                refused(lambda: quarters(painting.decoded_mask(data.getvalue(), info))),
                refused(lambda: painting.decoded_png(data.getvalue(), (47, 32), "x")),
                refused(lambda: painting.decoded_png(b"no", (47, 32), "x")),
                refused(lambda: painting.decoded_png(b"0" * (painting.MAX_BYTES + 1), (47, 32), "x")),
                [painting.too_large(size, "x") for size in ((4096, 8192), (4097, 8192))],
            ],
        )
