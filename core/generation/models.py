"""The model of a job: its parts from the store, with the switches of the memory settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from core.families import family
from core.families.attention import device_problems, set_attention
from core.families.components import Components
from core.families.precision import choose_precision, use_tf32, use_threads, vae_type
from core.formats.hashes import HashMemo
from core.generation.loras import LorasInUse
from core.generation.prompt.kept import ModelTexts
from core.generation.sources import Sources
from core.generation.store import ModelStore, fingerprint
from core.record import machine
from core.record.context import Reports
from core.record.memory import free_memory
from core.record.problems import raise_if_errors
from core.record.workspace import Workspace
from core.settings.job import GenerateJob
from core.settings.memory import MemorySettings

FREE_SHARE = 0.7  # of the free memory, which an image in the VAE may take: libraries need some beside what is counted


@contextmanager
def leased(
    job: GenerateJob, sources: Sources, store: ModelStore, device: str, reports: Reports
) -> Iterator[Components]:
    """The job's model, in the precision that suits the device. Its text encoders are loaded when they are first used."""
    problems = device_problems(job.memory, device)
    raise_if_errors(problems)
    for problem in problems:
        reports.warn(problem)
    reports.stage("loading the model")
    asked = job.generation_memory
    store.budget = None if asked.keep_models_gb is None else int(asked.keep_models_gb * 2**30)
    parts = Parts(job.memory, sources, device)
    own = {"name": sources.model.name, "device": device}
    with ExitStack() as stack:
        sizes = parts.sizes
        base = stack.enter_context(
            store.lease("base", parts.denoiser_key, parts.denoiser, size=sizes[parts.kind.denoiser], **own)
        )
        vae_name = (sources.vae or sources.model).name
        vae = stack.enter_context(
            store.lease("VAE", parts.vae_key, parts.vae, name=vae_name, size=sizes.get("vae", 0), device=device)
        )
        stack.enter_context(_sliced(vae, parts, asked.vae_slices, reports))
        texts = sum(sizes.get(name, 0) for name in parts.kind.layout.text_encoders)

        def encoders() -> Sequence[Any]:
            lease = store.lease("text encoders", parts.texts_key, parts.text_encoders, size=texts, **own)
            found: Sequence[Any] = stack.enter_context(lease).text_encoders
            return found

        yield replace(base, vae=vae.vae, vae_config=vae.vae_config, text_encoders=WhenUsed(encoders))


def _sliced(loaded: Components, parts: Parts, wanted: int | None, reports: Reports) -> AbstractContextManager[None]:
    """Inside, the VAE works in strips: in so many as are wanted, or where the image as a whole does not fit."""
    from core.families.counting import decoding_bytes, frozen
    from core.families.vae_strips import FIRST, in_strips, suits

    if not suits(loaded.vae):
        return nullcontext()

    def slices(pixels: int) -> int:
        if wanted is not None:
            return wanted
        config = frozen(loaded.vae_config)
        whole = decoding_bytes(parts.kind.name, config, pixels, parts.vae_dtype)
        return 1 if whole < FREE_SHARE * machine.free_memory(parts.device) else FIRST

    def again(number: int) -> None:
        free_memory()
        reports.say(f"The VAE ran out of memory; the image is processed in {number} strips")

    return in_strips(loaded.vae, slices, again)


def kept_texts(
    job: GenerateJob, sources: Sources, store: ModelStore, device: str, workspace: Workspace, loras: LorasInUse
) -> ModelTexts:
    """The text states of the job's model with its embeddings and LoRAs."""
    kind, memory = family(sources.family), job.memory
    store.texts.room = memory.text_cache_bytes
    encoders = kind.digest(sources.model, "text_encoders", memo=HashMemo(workspace.private / "hashes.json"))
    words = tuple((word.word, fingerprint(word.path)) for word in sources.embeddings)
    own = sources.model.glob("tokenizer*") if sources.model.is_dir() else ()
    tokenizers = tuple(map(fingerprint, sorted(own)))
    dtype = Parts(memory, sources, device).dtype
    model = (kind.name, encoders, tokenizers, str(dtype), memory.fp8_base, device, words)
    return ModelTexts(store.texts, device, model, loras.on_texts)


class WhenUsed(Sequence[Any]):
    """A list that is made when it is first looked at."""

    def __init__(self, make: Callable[[], Sequence[Any]]):
        self._make = make
        self._made: Sequence[Any] | None = None

    def _all(self) -> Sequence[Any]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, at: Any) -> Any:
        return self._all()[at]


class Parts:
    """Loads the parts of a model, and tells them apart: a part is loaded again where its key is another."""

    def __init__(self, memory: MemorySettings, sources: Sources, device: str):
        self.kind, self.memory, self.device = family(sources.family), memory, device
        self.path, self.own_vae = sources.model, sources.vae
        stored = self.kind.weight_bytes(sources.model)
        numbers = {name: size // 2 for name, size in self.kind.weight_bytes(sources.model, 2).items()}
        precision = choose_precision(memory, device, stored[self.kind.denoiser], trains=False)
        self.dtype, self.vae_dtype = precision.compute, vae_type(memory)
        use_threads(device, stored[self.kind.denoiser])
        use_tf32(memory.allow_tf32)
        self.sizes = {
            name: count * (self.vae_dtype if name == "vae" else self.dtype).itemsize for name, count in numbers.items()
        }
        self._file = (fingerprint(self.path), sources.family, str(self.dtype), device)

    @property
    def denoiser_key(self) -> Any:
        return (*self._file, self.memory.attention, self.memory.narrow_unet, self.memory.lowram)

    @property
    def vae_key(self) -> Any:
        return fingerprint(self.own_vae or self.path), self.kind.name, str(self.vae_dtype), self.device

    @property
    def texts_key(self) -> Any:
        return (*self._file, self.memory.fp8_base)

    def denoiser(self) -> Components:
        """The denoiser and the tokenizers."""
        from core.networks.frozen import install
        from core.networks.narrow import narrow

        # Narrowed in RAM, as in training: on a GPU it would briefly need the space of its 16 bits.
        beside = self.memory.narrow_unet and not self.memory.lowram
        loaded = self._load(("denoiser", "tokenizers"), device="cpu" if beside else self.device)
        denoiser = loaded.denoiser
        set_attention(denoiser, self.memory.attention)
        if self.memory.narrow_unet:
            narrow(denoiser)
        denoiser.to(self.device)
        _lay_out(denoiser, self.device)
        if self.device.startswith("cpu"):
            install(denoiser)  # as in training, so that both make the same image
        return loaded

    def vae(self) -> Components:
        loaded = self._load(("vae",), device=self.device, vae=self.own_vae, vae_dtype=self.vae_dtype)
        _lay_out(loaded.vae, self.device)
        return loaded

    def text_encoders(self) -> Components:
        from core.networks.narrow import narrow

        loaded = self._load(("text_encoders",), device=self.device)
        for encoder in loaded.text_encoders if self.memory.fp8_base else ():
            narrow(encoder)
        return loaded

    def _load(self, parts: tuple[str, ...], **how: Any) -> Components:
        return self.kind.load(self.path, parts=parts, dtype=self.dtype, **how)


def _lay_out(module: Any, device: str) -> None:
    """The layout that a GPU's convolutions prefer; results differ by rounding only."""
    import torch

    if device.startswith("cuda"):
        module.to(memory_format=torch.channels_last)
