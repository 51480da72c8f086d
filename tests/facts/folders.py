"""What is found in folders and zips of images: copies, blur, names; the trash."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from PIL import Image, ImageFilter

from core.dataset.doctor import trash
from core.dataset.doctor.examine import examine, held_out_copies, treat
from core.dataset.preflight import preflight
from core.dataset.sources import archive, files, folders, painted, walk
from core.families.token_count import count_tokens, cut_at
from core.record.workspace import Workspace
from tests.facts.dataset import LONG, job_of
from tests.facts.samples import beside, figures, noise, smooth, write
from tests.facts.store import Facts, folder, producer, refused


@producer
def findings() -> Facts:
    """What the doctor finds in copies, blur, borders, sizes and captions; the trash and back."""
    with folder() as root:
        cat = root / "cat"
        write(cat / "a.bmp", noise(96, 96, 1).resize((192, 192)), "a cat, sits, on a mat, in the sun, by day")
        write(cat / "b.bmp", noise(96, 96, 1).resize((192, 192)), "a cat, sits, on a mat, in the sun, by night")
        write(
            cat / "near.bmp",
            noise(96, 96, 1).resize((192, 192)).resize((150, 150), Image.Resampling.BOX),
            "a cat, sits, on a mat, in the sun, by day",
        )
        write(cat / "plain.bmp", Image.new("RGB", (96, 96), (9, 9, 9)), "plain, b, c, d, e")
        write(cat / "soft.bmp", smooth(96, 96, 3).filter(ImageFilter.BoxBlur(9)), "soft, b, c, d")
        frame = Image.new("RGB", (128, 96))
        frame.paste(noise(128, 64, 5), (0, 16))
        write(cat / "framed.bmp", frame, "framed, b, c, d, rare one")
        write(cat / "small.bmp", noise(40, 40, 6), "small, b, c, d")
        write(cat / "long.bmp", noise(320, 80, 7), "long, b, c, d, typo")
        beside(write(cat / "IMG_0231.bmp", noise(96, 96, 8), "IMG 0231").with_suffix(".npz"), "cache")
        write(cat / "none.bmp", noise(96, 96, 9))
        write(cat / "none-masklabel.png", noise(96, 96, 9, 1))
        write(root / "held" / "h.bmp", noise(96, 96, 8), "held")
        write(root / "reg" / "r.bmp", noise(96, 96, 9))
        job = job_of(
            root, {"folder": "~/cat", "reg_data_dir": "~/reg", "sources": [{"folder": "~/held", "role": "validation"}]}
        )
        report = preflight(job, Workspace(root / "outputs", root / "models"), decode=True)
        memo = root / "memo.sqlite"
        found = examine(report, memo)
        for finding in found:
            shown = finding.to_dict()
            images = [
                [[each["key"], figures(each["note"]), each["advised"]] for each in group] for group in shown["images"]
            ]
            yield (
                finding.kind,
                [finding.level, finding.count, shown["advised"], finding.action, finding.id, images, finding.problem()],
            )
        yield "placed", [[each.kind, each.count] for each in examine(report.placed, memo)]
        yield "held-out copies", held_out_copies(report, memo)
        moved = []
        for finding in found[:6]:
            token = refused(lambda finding=finding: treat(finding, cat))
            if isinstance(token, str):
                token = treat_token(cat)
                moved.append(
                    [
                        finding.kind,
                        sorted(path.name for path in cat.rglob("*") if path.is_file() and path.name != trash.RECORD),
                    ]
                )
                moved.append(sorted(path.name for path in trash.put_back(token)))
        yield "moved", moved
        token = trash.put_away(
            [cat / "a.bmp", root / "held" / "h.bmp"], cat, "test", {cat / "a.bmp": [root / "reg" / "r.bmp"]}
        )
        content = json.loads(Path(token).read_text())
        yield "record", [content["reason"], content["images"], content["files"], content["v"]]
        yield "lately", [[each.reason, each.images, each.files] for each in trash.undoable_actions(cat)]
        beside(cat / "a.bmp", "taken")
        yield "taken", refused(lambda: trash.put_back(token))
        yield "emptied", [trash.empty(cat)[0], trash.undoable_actions(cat)]
        yield "refused", [refused(partial(trash.put_away, each, cat, "x")) for each in ([], [cat / "gone.png"])]
        for name in COMPANIONS.split():
            beside(root / "pets" / name, "x")
        yield (
            "companions",
            [[path.name for path in trash.companions([root / "pets" / each])] for each in ("x.png", "y.png")],
        )


COMPANIONS = (
    "x.png x.txt x.caption x.npz x_flip.npz x_0512x0768_sdxl.npz x_te_outputs.npz x_y.npz x-masklabel.png"
    " y.png y.jpg y.txt x.png.txt x.json"
)


def treat_token(cat: Path) -> str:
    return trash.undoable_actions(cat)[0].token


def packed(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return path


@producer
def zips() -> Facts:
    """What is unpacked of zips, and which are refused."""
    with folder() as root:
        image = write(root / "i.bmp", smooth(8, 8)).read_bytes()
        long = "n" * 200
        forms = {
            "plain": {
                "a.png": image,
                "a.txt": b"x",
                "x.md": b"x",
                "x.exe": b"x",
                "big.psd": b"x",
                "__MACOSX/._a.png": b"x",
                "Thumbs.db": b"x",
            },
            "outer": {"top/a.bmp": image, "top/b/c.bmp": image},
            "repeats": {"10_fox/a.bmp": image},
            "two": {"x/a.bmp": image, "y/a.bmp": image, "y/m.json": b"{}"},
            "case": {"A.bmp": image, "a.BMP": image, "a.bmp": image},
            "names": {
                f"{long}.bmp": image,
                f"{long}.txt": b"x",
                f"{long}-masklabel.bmp": image,
                "con.bmp": image,
                "a:b?.bmp": image,
                " s /t. .bmp": image,
            },
            "roots": {"/abs/a.bmp": image, "C:\\dir\\b.bmp": image, "./c.bmp": image},
            "unknown": {"photo": image, "photo.bmp_large": image, "noimage.q": b"text"},
            "outside": {"../a.bmp": image},
            "no images": {"a.txt": b"x", "b.md": b"x"},
            "deep": {"/".join("d" * 40) + "/a.bmp": image},
            "clash": {"a.bmp": image, "a.bmp/b.bmp": image},
            "cp437": {"\u03b1.bmp": image},
        }
        for name, members in forms.items():
            unused = walk.Walk()

            def unpacked(name=name, members=members, unused=unused):
                made = archive.unpack_zip(packed(root / f"{name}.zip", members), root / "sets", unused=unused)
                return [
                    made.name,
                    sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()),
                ]

            yield name, [refused(unpacked), unused.unread, unused.ignored]
        yield "again", archive.unpack_zip(root / "plain.zip", root / "sets").name
        yield "damaged", refused(lambda: archive.unpack_zip(beside(root / "d.zip", b"PK\3\4 no"), root / "sets"))
        broken = {f"{number}.png": b"no" for number in range(archive.BROKEN_IMAGES + 1)}
        yield "broken", refused(lambda: archive.unpack_zip(packed(root / "b.zip", broken), root / "sets"))
        fewer = refused(
            lambda: archive.unpack_zip(packed(root / "b.zip", dict(list(broken.items())[1:])), root / "sets").name
        )
        yield "fewer broken", fewer


NAMES = (
    "a.PNG |b.jpg_large|c|.hidden|._a.png|Thumbs.db|x.txt|x.caption|x.zip|x.part|x.psd|x.json|x.heic|@eaDir|@synoabc"
    "|previews.lrdata|x@SynoEAStream|10_fox|0_skip|10000_x|10001_x|5_|100000_x|a_1|my_red-fox|  a__b |a-masklabel"
    "|-masklabel|b/a-CONDLABEL|foo_1_2_3_4|foo_1_2_3|foo_a_1_2_3_4|_atelier_trash"
).split("|")


@producer
def names() -> Facts:
    """What file and folder names mean."""
    for name in NAMES:
        marks = (
            files.is_junk,
            files.has_quiet_name,
            files.is_image_name,
            files.may_be_image,
            files.is_reported_unused,
            files.is_label,
        )
        texts = (
            files.extension,
            files.repeats_and_words,
            files.as_words,
            files.without_face,
            files.split_label,
            files.format_of,
        )
        yield name, ["".join("01"[bool(each(name))] for each in marks), *(each(name) for each in texts)]
    kinds = [
        ("a.png", "JPEG"),
        ("a.png", "png"),
        ("a.jpg", "MPO"),
        ("a.bmp", "DIB"),
        ("a.xyz", "PNG"),
        ("a.jfif", "JPEG"),
        ("a.dib", "BMP"),
    ]
    yield "kinds", [files.format_if_other(*each) for each in kinds]
    starts = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF0000WEBP",
        b"RIFF0000WAVE",
        b"GIF87a",
        b"BM0000\0\0\0\0",
        b"BM",
        b"qoif",
        b"0000ftypavif",
        b"II*\0",
        b"text",
    )
    yield "starts", [files.begins_like_image(each) for each in starts]
    paths = ("C:\\a\\b", "\\\\server\\share\\x", "C:/a/b", "\\\\?\\C:\\a", "\\\\?\\UNC\\s\\x")
    yield "paths", [[files.extended_form(each), files.plain_form(each), files.printable(each)] for each in paths]
    yield "printable", files.printable(os.fsdecode(b"a\xffb")) if os.name != "nt" else "a\ufffdb"
    with folder() as root:
        (root / "fox").mkdir()
        yield "painted", [painted.painted_folder(root / "d", root / each).name for each in ("fox", "x" * 100)]
        sources = ({}, {"role": "regularization"}, {"class_tokens": ""}, {"class_tokens": "t"}, {"identifier": None})
        made = [
            folders.Source(**{"folder": "x", "identifier": "sks ", "class_word": " dog"} | each) for each in sources
        ]
        yield "words", [folders.class_tokens_for(each, "named") for each in made]
        (root / "7_red").mkdir()
        whole = [
            folders.whole_root(replace_source(repeats), root / name)
            for repeats in (None, 4)
            for name in ("7_red", "fox", "0_x")
        ]
        yield "roots", [[each.repeats, each.class_tokens] for each in whole]
    yield "tokens", [count_tokens(text) for text in ("", "a fox", LONG, "größe 狐", "(a:1.2)", "a," * 90)]
    yield "cut", [[len(part) for part in cut_at(LONG, most)] for most in (75, 150, 225, 600)] + [cut_at("a fox", 75)]


def replace_source(repeats: int | None) -> folders.Source:
    return folders.Source(folder="x", num_repeats=repeats)
