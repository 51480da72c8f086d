"""Leases the parts of a job's model from the store and sets them up by the memory settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from core.families import family
from core.families.attention import device_problems
from core.families.components import Components
from core.families.offload import vae_temporarily_on
from core.formats.hashes import HashMemo
from core.generation.model.embeddings import PromptEncoder
from core.generation.model.loras import LorasInUse
from core.generation.model.parts import Offload, Parts
from core.generation.model.sources import Sources
from core.generation.model.store import ModelStore, ModelTextCache, fingerprint
from core.record import machine
from core.record.context import Reports
from core.record.memory import free_memory
from core.record.problems import raise_if_errors
from core.record.workspace import Workspace
from core.settings.job import GenerateJob

FREE_SHARE = 0.7  # of the free memory that decoding may take: libraries need more than is estimated
# job -> a context with its refiner and a prompt encoder without embeddings
Refiner = Callable[[GenerateJob], AbstractContextManager[tuple[Components, PromptEncoder]]]


@contextmanager
def leased(
    job: GenerateJob, sources: Sources, store: ModelStore, device: str, reports: Reports, offload: Offload
) -> Iterator[Components]:
    """Context with the job's model on its device. Text encoders are loaded when first used.

    Also sets the store's memory budget.

    offload   which weights rest in RAM: "off", "parts" or "layers"
    Raises ProblemsError for memory settings that the device does not support, and for a model that cannot be loaded.
    """
    problems = device_problems(job.memory, device)
    raise_if_errors(problems)
    for problem in problems:
        reports.warn(problem)
    reports.stage("loading the model")
    settings = job.generation_memory
    store.budget = None if settings.keep_models_gb is None else int(settings.keep_models_gb * 2**30)
    parts = Parts(job.memory, sources, device)
    parts.use_device()
    parts.offload = offload
    facts = {"name": sources.model.name, "device": device}
    with ExitStack() as stack:
        sizes = parts.sizes
        base = stack.enter_context(
            store.lease("base", parts.denoiser_key, parts.denoiser, size=sizes[parts.kind.denoiser], **facts)
        )
        vae_name = (sources.vae or sources.model).name
        vae = stack.enter_context(
            store.lease("VAE", parts.vae_key, parts.vae, name=vae_name, size=sizes.get("vae", 0), device=device)
        )
        vae.vae.to(parts.rest_device)
        stack.enter_context(_in_strips(vae, parts, settings.vae_slices, reports))
        if parts.rest_device != device:
            stack.enter_context(vae_temporarily_on(vae.vae, device))
        encoders = _encoders(parts, store, stack, **facts)
        yield replace(base, vae=vae.vae, vae_config=vae.vae_config, text_encoders=encoders, device=device)


def _encoders(parts: Parts, store: ModelStore, stack: ExitStack, **facts: Any) -> LazyList:
    """Return a list of the text encoders that is leased from the store at its first use. stack: ends the lease"""

    def encoders() -> Sequence[Any]:
        size = sum(parts.sizes[name] for name in parts.text_encoder_names)
        lease = store.lease("text encoders", parts.texts_key, parts.text_encoders, size=size, **facts)
        loaded: Sequence[Any] = stack.enter_context(lease).text_encoders
        for encoder in loaded:
            encoder.to(parts.rest_device)
        return loaded

    return LazyList(encoders)


def refiners_of(
    job: GenerateJob,
    sources: Sources,
    store: ModelStore,
    device: str,
    workspace: Workspace,
    base: Components,
    offload: Offload,
) -> Refiner:
    """Return a function that leases the refiner of a job: job -> context with (refiner, prompt encoder without embeddings).

    base      the base model; with offload "parts" it rests in RAM during the lease
    offload   which weights rest in RAM: "off", "parts" or "layers"
    """
    parts_by_name = Parts.of_refiners(job.memory, sources, device)

    @contextmanager
    def lease(refined_job: GenerateJob) -> Iterator[tuple[Components, PromptEncoder]]:
        name = refined_job.refiner.refiner_checkpoint or ""
        parts = parts_by_name[name]
        parts.offload = offload
        facts = {"name": parts.path.name, "device": device}
        with ExitStack() as stack:
            if offload == "parts":
                base.denoiser.to("cpu")
                stack.callback(base.denoiser.to, device)
            size = parts.sizes[parts.kind.denoiser]
            loaded = stack.enter_context(store.lease("refiner", parts.denoiser_key, parts.denoiser, size=size, **facts))
            if offload == "parts":
                stack.callback(loaded.denoiser.to, "cpu")
            if offload != "layers":
                loaded.denoiser.to(device)  # an earlier job may have left it in RAM
            encoders = _encoders(parts, store, stack, **facts)
            refiner = replace(loaded, text_encoders=encoders, device=device)
            of_refiner = replace(sources, model=parts.path, family=parts.kind.name, vae=None, embeddings=[])
            texts = text_cache(job, of_refiner, store, device, workspace, LorasInUse())
            yield refiner, PromptEncoder(refiner, {}, set(), texts)

    return lease


def _in_strips(loaded: Components, parts: Parts, strips: int | None, reports: Reports) -> AbstractContextManager[None]:
    """Context in which the VAE processes images in `strips` strips; None: in strips only if the whole image does not fit into memory."""
    from core.families.counting import config_key, decoding_bytes
    from core.families.vae_strips import RETRY_STRIPS, can_use_strips, in_strips

    if not can_use_strips(loaded.vae):
        return nullcontext()

    def slices(pixels: int) -> int:
        """Return the number of strips for an image of `pixels` pixels."""
        if strips is not None:
            return strips
        config = config_key(loaded.vae_config)
        needed = decoding_bytes(parts.kind.name, config, pixels, parts.vae_dtype)
        return 1 if needed < FREE_SHARE * machine.available_memory(parts.device) else RETRY_STRIPS

    def retry(number: int) -> None:
        """Free memory and report that the VAE will use `number` strips."""
        free_memory()
        reports.say(f"The VAE ran out of memory; the image is processed in {number} strips")

    return in_strips(loaded.vae, slices, retry)


def text_cache(
    job: GenerateJob, sources: Sources, store: ModelStore, device: str, workspace: Workspace, loras: LorasInUse
) -> ModelTextCache:
    """Return the cache of text encoder states for the job's model with its embeddings and LoRAs; sets the cache's size limit."""
    kind, memory = family(sources.family), job.memory
    store.texts.max_bytes = memory.text_cache_bytes
    encoders = kind.digest(sources.model, "text_encoders", memo=HashMemo.of(workspace))
    embeddings = tuple((embedding.name, fingerprint(embedding.path)) for embedding in sources.embeddings)
    files = sources.model.glob("tokenizer*") if sources.model.is_dir() else ()
    tokenizers = tuple(map(fingerprint, sorted(files)))
    dtype = Parts(memory, sources, device).dtype
    model = (kind.name, encoders, tokenizers, str(dtype), memory.fp8_base, device, embeddings)
    return ModelTextCache(store.texts, device, model, loras.text_state_key)


class LazyList(Sequence[Any]):
    """A list that is created by `make` at its first access."""

    def __init__(self, make: Callable[[], Sequence[Any]]):
        self._make = make
        self._items: Sequence[Any] | None = None

    def _all(self) -> Sequence[Any]:
        if self._items is None:
            self._items = self._make()
        return self._items

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]
