"""Hostile model files by the hundred: known bombs, and small good files with one thing made wrong; and who reads them."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from core.record.problems import ProblemsError
from tests.hostile.changes import Files, change_json, changed, special, text_of
from tests.models import tiny_folder

START = b"\x80\x02"
Bad = tuple[str, Callable[[], bytes]]
Readers = dict[str, Callable[[Path], Any]]


# ---- good files


def lora() -> dict[str, torch.Tensor]:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    other = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    return {
        f"{key}.{suffix}": value
        for key, width in ((name, 768), (other, 32))
        for suffix, value in (
            ("lora_down.weight", torch.ones(2, width)),
            ("lora_up.weight", torch.ones(4, 2)),
            ("alpha", torch.tensor(1.0)),
        )
    }


def checkpoint() -> dict[str, torch.Tensor]:
    unet = "model.diffusion_model."
    return {
        f"{unet}input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
        f"{unet}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, 1024),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(6, 2),
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": torch.zeros(6),
        "cond_stage_model.model.text_projection": torch.zeros(2, 2),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(2, 3, 3, 3),
        "first_stage_model.decoder.mid.attn_1.q.weight": torch.zeros(2, 2, 1, 1),
        "v_pred": torch.zeros(0),
    }


def tensors_of() -> dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]:
    peft = {"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 8)}
    peft |= {"unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(8, 2)}
    adapter = json.dumps(
        {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"mid_block.attentions.0.proj_in": 1}}
    )
    return {
        "lora": (
            lora(),
            {"ss_network_dim": "2", "ss_tag_frequency": '{"fox": {"a": 1}}', "modelspec.resolution": "512x512"},
        ),
        "peft": (peft, {"lora_adapter_metadata": adapter}),
        "embedding": ({"emb_params": torch.ones(2, 768)}, {}),
        "sdxl_embedding": ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, {}),
        "checkpoint": (checkpoint(), {"atelier_sizes": '{"unet": {"layers_per_block": 2}}'}),
        "vae": (
            {"encoder.conv_in.weight": torch.ones(4, 3, 3, 3), "decoder.conv_in.weight": torch.ones(4, 4, 3, 3)},
            {},
        ),
    }


# ---- safetensors


def safetensors_file(listing: Any, body: bytes, length: int | None = None) -> bytes:
    text = listing if isinstance(listing, bytes) else text_of(listing() if callable(listing) else listing)
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: Any, begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_bombs() -> Iterator[Bad]:
    long = f"lora_unet_{'_block' * 20}{{}}.lora_down.weight"
    for name, listing in {
        "shape of 4000 huge numbers": {"a": entry([2**62] * 4000)},
        "product of zero and huge": {"a": entry([0, 2**62, 2**62], 0, 0)},
        "a tensor of no known type": {"a": entry([1], 0, 4, "F4")},
        "floats for sides": {"a": entry([1.0])},
        "many names": lambda: {long.format(n): entry([0], 0, 0) for n in range(19_000)},
        "too many names": lambda: {str(n): entry([0], 0, 0) for n in range(60_000)},
        "a long name": {"a" * 1_000_000: entry([1])},
        "a list": [],
        "metadata as a list": {"__metadata__": [1], "a": entry([1])},
        "metadata of other types": {"__metadata__": {"a": {"b": 1}}, "a": entry([1])},
    }.items():
        yield name, partial(safetensors_file, listing, bytes(4))
    one = text_of(entry([1]))
    overlapping = {str(n): {**entry([250], 0, 1000)} for n in range(9000)}
    yield "overlapping", lambda: safetensors_file(overlapping, bytes(1000))
    for name, text in {
        "nested 100,000 deep": lambda: b'{"a":' + b"[" * 100_000,
        "millions of lists": lambda: b'{"a":[' + b"[]," * 9_000_000 + b"[]]}",
        "a header of 60 MB": lambda: b'{"a":"' + b"x" * 60_000_000 + b'"}',
        "fox for megabytes": lambda: b'{"__metadata__":{"a":"' + "🦊".encode() * 2_000_000 + b'"}}',
    }.items():
        yield name, lambda text=text: safetensors_file(text(), b"")  # type: ignore[misc]
    other = text_of(entry([2], 4, 12))
    yield "a name twice, at one place", lambda: safetensors_file(b'{"a":' + one + b',"a":' + one + b"}", bytes(4))
    yield "a name twice, at two places", lambda: safetensors_file(b'{"a":' + one + b',"a":' + other + b"}", bytes(12))
    key = b'"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight":'
    yield "a LoRA's name twice", lambda: safetensors_file(b"{" + key + one + b"," + key + other + b"}", bytes(12))
    yield "length beyond the file", lambda: safetensors_file({}, b"", 90_000_000)
    for length in (0, 1, 7, 2**63, 2**64 - 1):
        yield f"length {length}", partial(safetensors_file, {"a": entry([1])}, bytes(4), length)


def safetensors_good(draw: random.Random) -> bytes:
    tensors, metadata = draw.choice(list(tensors_of().values()))
    return save(tensors, metadata=metadata or None)


def safetensors_changed(draw: random.Random) -> bytes:
    data = safetensors_good(draw)
    if draw.random() < 0.25:
        return changed(data, draw)
    length = int.from_bytes(data[:8], "little")
    listing = json.loads(data[8 : 8 + length])
    if draw.random() < 0.3:
        return safetensors_file(_reshaped(listing, draw), data[8 + length :])
    return safetensors_file(change_json(listing, draw), data[8 + length :])


def _reshaped(listing: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Sound by itself, with other shapes or types than anything expects."""
    names = [name for name in listing if name != "__metadata__"]
    for name in draw.sample(names, draw.randrange(1, len(names) + 1)):
        begin, end = listing[name]["data_offsets"]
        dtype, item = draw.choice(
            (("F32", 4), ("U8", 1), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1), ("F16", 2), ("F64", 8))
        )
        count = (end - begin) // item
        end = begin + count * item
        shape = draw.choice(([count], [count, 1], [1, count], [1] * 8 + [count], [count, 1, 1, 1], [1, 1, count], []))
        listing[name] = entry(shape if shape or count != 1 else [], begin, end, dtype)
    return listing


# ---- pickles


def zipped(data: bytes, extra: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("m/data.pkl", data)
        for name, content in (extra or {"byteorder": b"little", "version": b"3\n"}).items():
            archive.writestr(f"m/{name}", content)
    return out.getvalue()


def legacy(data: bytes, rest: bytes = START + b"].") -> bytes:
    return b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})) + data + rest


def pickle_bombs() -> Iterator[Bad]:
    shared: dict = {}
    for _ in range(6):
        shared = dict.fromkeys(map(str, range(100)), shared)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQK\0%b%bI00\nNtR"
    for name, data in {
        "nested lists": START + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        "nested tuples": START + b")" + b"\x85" * 1_000_000 + b".",
        "nested tuple as a key": START + b"})" + b"\x85" * 300_000 + b"Ns.",
        "nested dicts": START + b"}" * 500_000 + b"X\1\0\0\0a" + b".",
        "nested states": START + b"cx\ny\n)R" + b"q\0cx\ny\n)Rh\0b" * 60_000 + b".",
        "shared tuples as a key": START + b"})" + b"2\x86" * 200 + b"Ns.",
        "shared dicts": pickle.dumps(shared, 2),
        "state_dict of itself": START + b"}q\x00X\x0a\0\0\0state_dicth\0s.",
        "parameters of itself": START + b"}q\x00X\x0b\0\0\0_parametersh\0s.",
        "memo of 2**31": START + b"Nr\xff\xff\xff\x7f.",
        "memo of 2**28": START + b"Nr\0\0\0\x10.",
        "long of 2 GB": START + b"\x8b\xff\xff\xff\x7f1.",
        "string of 4 GB": START + b"X\xff\xff\xff\xffa.",
        "bytes of 2**63": START + b"\x8e" + b"\xff" * 8 + b".",
        "numbers of one hash": START
        + b"}("
        + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(150_000))
        + b"u.",
        "code": b"cos\nsystem\n(S'touch /tmp/it-ran'\ntR.",
        "half a million marks": START + b"(" * 500_000 + b".",
        "persistent ids of nothing": START + b"NQ.",
        "storage of no bytes": START + b"}X\1\0\0\0a" + tensor % (b"K\1\x85", b"K\1\x85") + b"s.",
        "shape of many axes": START + b"}X\1\0\0\0a" + tensor % ((b"(" + b"K\1" * 5000 + b"t",) * 2) + b"s.",
        "strides below zero": START + b"}X\1\0\0\0a" + tensor % (b"K\2\x85", b"J\xff\xff\xff\xff\x85") + b"s.",
        "keys of every kind": START + b"}(NNI01\nN)N]NG" + b"\x7f\xf8" + bytes(6) + b"Nu.",
    }.items():
        yield f"{name}, zip", partial(zipped, data, {"data/0": bytes(4)})
        yield f"{name}, legacy", partial(legacy, data)
    packed = zipfile.ZIP_DEFLATED
    yield "a pickle of 90 MB", lambda: zipped(bytes(90_000_000), method=packed)
    yield "byteorder of 300 MB", lambda: zipped(START + b"}.", {"byteorder": bytes(300_000_000)}, packed)
    yield "LZMA", lambda: zipped(START + b"}.", method=zipfile.ZIP_LZMA)
    yield "many members", lambda: zipped(START + b"}.", {f"data/{n}": b"" for n in range(60_000)})
    yield "a number repeated 2**40 times", lambda: saved({"emb_params": torch.zeros(1, 1).expand(2**20, 2**20)}, True)
    yield "keys without end", lambda: legacy(START + b"}.", START + b"(" + b"X\1\0\0\x000" * 100 + b"l.")


def saved(value: Any, new_form: bool) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=new_form)
    return out.getvalue()


def pickled_good(draw: random.Random) -> bytes:
    vectors = torch.nn.ParameterDict({"*": torch.zeros(2, 768)})
    content = draw.choice(
        (
            {"state_dict": checkpoint(), "global_step": 875000, "epoch": 3},
            {"string_to_token": {"*": 265}, "string_to_param": vectors, "name": "fox"},
            lora(),
            {"emb_params": torch.ones(2, 768)},
            {"w": torch.arange(24.0).reshape(4, 6).T, "n": torch.tensor(2.5), "e": torch.zeros(0, 4)},
        )
    )
    return saved(content, draw.random() < 0.6)


def pickle_changed(draw: random.Random) -> bytes:
    data = pickled_good(draw)
    if data[:2] != b"PK" or draw.random() < 0.3:
        head = bytearray(data)
        if draw.random() < 0.5 and data[:2] == b"PK":  # its list of members
            at = len(data) - draw.randrange(1, min(400, len(data)))
            head[at] ^= 1 << draw.randrange(8)
            return bytes(head)
        return changed(data, draw)
    return rezipped(data, "data.pkl", lambda content: changed(content, draw))


def rezipped(data: bytes, ending: str, change: Callable[[bytes], bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if info.filename.endswith(ending) else content)
    return out.getvalue()


# ---- .npz


def npz_good() -> bytes:
    out = io.BytesIO()
    size = np.array([128, 128])
    np.savez(out, latents=np.zeros((4, 16, 16), np.float32), original_size=size, crop_ltrb=np.array([0, 0, 128, 128]))
    return out.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def npz_bombs() -> Iterator[Bad]:
    headers = (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1099511627776, 16)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 16, -16)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4, 16, 16)}",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4, 16, 16)}",
        "{'descr': '<U999999999', 'fortran_order': False, 'shape': (4, 16, 16)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 5}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ()}",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4, 16, 16)}",
        "[" * 4000,
        "{}",
        "(" * 100 + ")" * 100,
    )
    for number, header in enumerate(headers):
        yield f"header {number}", partial(npz_with, npy(header, bytes(4096)))
        yield f"size with header {number}", partial(npz_with, npy(header, bytes(64)), "original_size.npy")
        yield f"bare with header {number}", partial(npz_with, npy(header, bytes(4096)), "arr_0.npy")
    for name in ("latents.npy", "original_size.npy"):
        yield f"{name} of 300 MB", lambda name=name: npz_with(bytes(300_000_000), name)  # type: ignore[misc]
    yield "LZMA", lambda: npz_with(npy_of(), method=zipfile.ZIP_LZMA)
    yield "one array and no zip", npy_of
    yield "a pickle", lambda: pickle.dumps([1, 2])


def npz_with(content: bytes, name: str = "latents.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def npy_of() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((4, 16, 16), np.float32))
    return out.getvalue()


def npz_changed(draw: random.Random) -> bytes:
    data = npz_good()
    if draw.random() < 0.5:
        return changed(data, draw)
    return rezipped(data, draw.choice(("latents.npy", "original_size.npy")), lambda content: changed(content, draw))


# ---- diffusers folders


def make_folder(folder: Path, case: int) -> Path:
    """A diffusers folder with one of its small files made wrong. The weights are links to the good one's."""
    good, target = folder.parent / "good", folder / "model"
    if not good.exists():
        tiny_folder("sd1", good)
    shutil.copytree(good, target, copy_function=os.link)
    draw = random.Random(f"folder {case}")
    small = [path for path in sorted(target.rglob("*")) if path.suffix in (".json", ".txt")]
    file = draw.choice(small)
    data, way = file.read_bytes(), draw.randrange(12)
    if case:
        file.unlink()
        if way < 3:
            special(file.parent, file.name, ("pipe", "loop", "folder")[way])
        else:
            file.write_bytes(changed(data, draw))
    return target


# ---- whole checkpoints


def make_checkpoint(folder: Path, case: int) -> Path:
    """A complete model in a file that is cut off, or whose header is changed."""
    good, target = folder.parent / "good.safetensors", folder / "model.safetensors"
    if not good.exists():
        from core import tasks
        from core.record.workspace import Workspace
        from core.settings.tools.convert_model import ConvertModelSettings
        from tests.tasks import surroundings

        parts = tiny_folder("sd1", folder.parent / "parts")
        settings = ConvertModelSettings(file=str(parts), output=str(good))
        tasks.named("convert_model").run(settings, surroundings(Workspace()))
    data, draw = good.read_bytes(), random.Random(f"checkpoint {case}")
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    if case and draw.random() < 0.3:
        data = data[: draw.randrange(len(data))]
    elif case and draw.random() < 0.5:
        header = changed(header, draw)
        data = struct.pack("<Q", len(header)) + header + body
    elif case:
        listing = json.loads(header)
        name, other = draw.choice(list(listing)), draw.choice(list(listing))
        listing[name] = draw.choice(
            (listing[other], {**listing[name], "dtype": "I32"}, {**listing[name], "shape": [1]})
        )
        if draw.random() < 0.3:
            del listing[other]
        data = safetensors_file(listing, body)
    target.write_bytes(data)
    return target


# ---- readers: every one that a person could point at such a file


def model_readers() -> Readers:
    from core.families.trained_size import trained_size
    from core.formats.detect import identify
    from core.formats.embedding_file import read_embedding, read_shapes
    from core.formats.hashes import model_hashes
    from core.formats.models.checkpoint import open_checkpoint, open_vae, part_digest
    from core.generation.model.embeddings import token_widths
    from core.generation.model.index import facts_of_file
    from core.networks.adapter_file import load_lora, to_diffusers
    from core.tools.models.inspect import fact_lines, inspect

    def small(path: Path) -> None:
        if path.is_file() and path.stat().st_size < 1 << 30:  # the hash of a sparse file takes its hour
            fact_lines(inspect(path))
            model_hashes(path)

    def digests(path: Path) -> None:
        for part in open_checkpoint(path, "sd2").parts.values():
            part_digest(part)

    return {
        "identify": identify,
        "list": facts_of_file,
        **{name: partial(open_checkpoint, family=name) for name in ("sd1", "sd2", "sdxl")},
        "digests": digests,
        "vae": open_vae,
        "lora": lambda path: to_diffusers(load_lora(path)),
        "lora header": lambda path: load_lora(path, shapes=True),
        "embedding": read_embedding,
        "embedding header": read_shapes,
        "inspect": small,
        "size": trained_size,
        "words": token_widths,
        **converting(),
    }


def converting() -> Readers:
    """Whole models to another form, and their VAEs."""
    from core import tasks
    from core.record.workspace import Workspace
    from core.settings.tools.convert_model import ConvertModelSettings, ExtractVaeSettings
    from tests.tasks import surroundings

    def convert(path: Path) -> None:
        form: Any = "safetensors" if path.is_dir() else "diffusers_safetensors"
        asked = ConvertModelSettings(file=str(path), save_model_as=form, output=str(path.parent / "converted"))
        tasks.named("convert_model").run(asked, surroundings(Workspace()))

    def extract(path: Path) -> None:
        asked = ExtractVaeSettings(file=str(path), output=str(path.parent / "extracted"))
        tasks.named("extract_vae").run(asked, surroundings(Workspace()))

    return {"convert": convert, "extract": extract}


def folder_readers() -> Readers:
    import torch

    from core.families.loading import fit_problems
    from core.families.part_shapes import make_empty
    from core.families.sd1 import FAMILY as sd1
    from core.families.tokenizer import load_tokenizer
    from core.formats.detect import identify
    from core.generation.model.embeddings import token_widths
    from core.generation.model.index import facts_of_file
    from core.record.problems import errors
    from core.tools.models.inspect import fact_lines, inspect
    from core.training.memory.plan import facts_of

    for part in ("unet", "vae", "text_encoder"):  # the libraries are imported before the clock runs
        make_empty(part, sd1.layout.config(part))
    load_tokenizer()

    def load_what_the_check_passes(path: Path) -> None:
        """What the check passes, loading must not refuse."""
        found = errors(fit_problems(sd1.layout, path))
        try:
            components = sd1.load(path)
            assert torch.isfinite(sd1.encode_captions(components, ["a fox"]).context).all()
        except ProblemsError as error:
            if not found:
                raise AssertionError(f"the check passed what loading refuses: {error}") from error
        else:
            if found:
                raise ProblemsError(found)

    def forecast(path: Path) -> None:
        from core.record.workspace import Workspace
        from core.settings.job import TrainJob
        from core.training.memory.plan import memory_plan

        job = TrainJob.model_validate({"model": {"base_model": str(path), "family": "sd1"}})
        memory_plan(job, facts_of(job, Workspace(), "cpu"))

    return {
        "identify": identify,
        "list": facts_of_file,
        "inspect": lambda path: fact_lines(inspect(path)),
        "tokenizer": load_tokenizer,
        "words": token_widths,
        "load": load_what_the_check_passes,
        **converting(),
        "forecast": forecast,
    }


def npz_readers() -> Readers:
    from core.dataset.caches.encoding import Side
    from core.dataset.caches.npz import Unfit, read_latents

    image = SimpleNamespace(width=128, height=128, rotated=False)
    placed: Any = SimpleNamespace(placement=SimpleNamespace(bucket=(128, 128)), image=image)

    def read(path: Path) -> None:
        try:
            read_latents(path, Side(placed))
        except Unfit as error:
            raise ProblemsError.one(f"{path.name} {error}", str(path), "-") from error

    return {"latents": read}


def state_readers() -> Readers:
    from core.formats.tensors.pickles import load_state_file

    return {"state": load_state_file}


def _files(ending: str, good: Callable[[random.Random], bytes], bad: Callable, change: Callable) -> Files:
    named = [(f"{name}{ending}", data) for name, data in bad()]
    return Files(f"model{ending}", lambda: good(random.Random(0)), named, change)


SAFETENSORS = _files(".safetensors", safetensors_good, safetensors_bombs, safetensors_changed)
PICKLES = _files(".ckpt", pickled_good, pickle_bombs, pickle_changed)
FAMILIES = {
    "safetensors": (SAFETENSORS, model_readers),
    "pickles": (PICKLES, lambda: model_readers() | state_readers()),
    "npz": (_files(".npz", lambda draw: npz_good(), npz_bombs, npz_changed), npz_readers),
    "checkpoints": (make_checkpoint, converting),
    "model folders": (make_folder, folder_readers),
}
