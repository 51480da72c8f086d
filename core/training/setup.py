"""From a job to a run that is ready for its first step: dataset, caches, model, network, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.files import printable
from core.dataset.fingerprint import dataset_fingerprint
from core.dataset.metadata_writing import write_metadata
from core.dataset.preflight import preflight
from core.dataset.report import Report
from core.dataset.text_cache import ENCODED_AT_ONCE, TextCache
from core.families import family, type_speed
from core.families.attention import checkpoint_text_encoder, checkpoint_unet, set_attention
from core.families.locate import family_of, model_path
from core.families.precision import Precision, choose_precision, use_tf32, use_threads, vae_type
from core.formats.hashes import HashMemo
from core.formats.hub_upload import Uploads
from core.methods import Method, MethodInputs
from core.networks.files import merge_files
from core.networks.narrow import narrow
from core.record import atomic, machine
from core.record.bounded_json import read_json_object
from core.record.context import JobContext
from core.record.problems import ProblemsError, raise_if_errors
from core.record.run_folder import states_in
from core.record.secrets import secret
from core.record.workspace import resolve_path
from core.settings.hub import HubSettings
from core.settings.job import PrepareJob, TrainJob
from core.settings.methods import spec_of
from core.settings.rates import scale_factor
from core.training.building import compile_blocks, load_trained, make_stepper, prepare_prior
from core.training.checks import problems_before_start
from core.training.latents import build_latents, prepare_latents, write_npz_caches
from core.training.losses import DAMAGED_FIX, LossBuffer
from core.training.network_files import merged_identity, network_files
from core.training.objective import objective_of
from core.training.plan import Plan
from core.training.prior import captions as class_captions
from core.training.resume import first_step
from core.training.run import Run, with_seed
from core.training.samples import (
    FrozenPromptTexts,
    PromptTexts,
    TrainedPromptTexts,
    prompts_of,
    tokens_of_prompts,
)
from core.training.saving import save_steps
from core.training.sources import FrozenText, Latents, Text, TrainedText
from core.training.tasks import Tasks
from core.training.trackers import Trackers, make_tracker
from core.training.validation import Length, Validation, caption_of, pairs_within, timesteps_of
from core.training.watching import Watch

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from core.dataset.batches import Placed
    from core.dataset.text_cache import EncodeText
    from core.diffusion.text_states import TextStates
    from core.families.components import Components


Choose = Callable[[Report], Report]


def checked(job: TrainJob, context: JobContext) -> Report:
    """The preflight once more, at the moment of training: files may have changed while the job waited."""
    context.stage("looking at the dataset")
    report = preflight(
        job,
        context.workspace,
        decode=True,
        cancel=context.token,
        progress=lambda done, total: context.stage("checking images", done, total),
    )
    begins = not context.folder.states.is_dir()
    raise_if_errors(
        problems_before_start(job, context.workspace, report, context.device, begins=begins, cancel=context.token)
    )
    return report


class Builder:
    """The steps of building, in their order; what one needs of another it keeps."""

    def __init__(self, job: TrainJob, context: JobContext, chosen: Choose = lambda report: report):
        self.job, self.context = job, context
        self.seed = job.schedule.seed or 0
        with context.processes.first_does():  # the others find remembered what the first one looked at
            self.report = chosen(checked(job, context))
        self.model = model_path(job.model.base_model, context.workspace)
        self.vae = model_path(job.model.vae, context.workspace, "model.vae") if job.model.vae else None
        self.family_name = family_of(self.model, job.model.family)
        self.family = family(self.family_name)
        self.memo = HashMemo(context.workspace.private / "hashes.json")
        self.plan = Plan(self.report.placed, job, self.seed, self.report.total_steps)
        if not job.resume.skip_until_initial_step:
            self.plan.begin = first_step(job, self.plan) or 0
        self.validation = Validation(job, self.report, self._length())
        self.files = network_files(job, context.workspace, self.memo)
        inputs = MethodInputs(job, context.workspace, self.seed, self.model, self.vae, self.files)
        self.method: Method = spec_of(job).make(inputs)
        self.precision = self._precision()
        self.prompts = prompts_of(job, self.model)
        self.prompt_texts: PromptTexts  # when the encoders are there
        self._text_model: Any = None
        self._vae_model: Any = None

    def _length(self) -> Length:
        """What measuring may cost. A resumed run measures as many pairs as before, or its checkpoints would not compare."""
        total, updates = self.report.total_steps, self.plan.epochs.updates_in(0)
        shown = sum(self.report.views.values()) * total / max(updates, 1) / self.context.processes.count
        saves = save_steps(self.job.saving, self.plan, total)
        try:
            pairs = int(read_json_object(self.context.folder.dataset_file)["validation"]["pairs"])
        except (ProblemsError, OSError, ValueError, KeyError, TypeError):
            pairs = pairs_within(shown, len(saves))
        return Length(shown, saves, pairs)

    def _precision(self) -> Precision:
        size = self.family.weight_bytes(self.model)["unet"]
        use_threads(self.context.device, size)
        use_tf32(self.job.memory.allow_tf32)
        settings = self.job.memory
        if settings.mixed_precision == "auto":
            settings = settings.model_copy(update={"mixed_precision": self._decided_type(size)})
        return choose_precision(settings, self.context.device, size, method=self.job.method)

    def _decided_type(self, size: int) -> str:
        """What "auto" stands for in this run. Decided once when it starts: a resumed run must not change."""
        folder, device = self.context.folder, self.context.device
        with self.context.processes.first_does():
            known = _decided_before(folder.machine_file, device)
            if known:
                return known
            pays = type_speed.bf16_pays
            if states_in(folder.states):  # of a version that asked the CPU what it has, and measured nothing
                pays = partial(machine.bf16_is_fast, device)
            memory, method = self.job.memory, self.job.method
            decided = choose_precision(memory, device, size, method=method, bf16_pays=pays).name
            if self.context.processes.first:
                atomic.write_json(folder.machine_file, {"device": device, "precision": decided})
            return decided

    # -- latents

    def load_vae(self) -> Any:
        """The VAE; loaded at first use."""
        if self._vae_model is None:
            self._vae_model = self.family.load(
                self.model,
                parts=("vae",),
                vae=self.vae,
                vae_dtype=vae_type(self.job.memory),
                device=self.context.device,
            ).vae
        return self._vae_model

    def put_vae_away(self) -> None:
        """The device is for what trains; samples need the VAE again."""
        if self._vae_model is not None:
            self._vae_model = self._vae_model.to("cpu") if self.prompts else None

    # -- text

    def text_cache(self, tokens: int | None = None) -> TextCache:
        """Of captions; with `tokens` of prompts, which are read with so many."""
        identity = self.family.digest(
            self.model, "text_encoders", memo=self.memo, kohya_projection=self.job.model.kohya_projection
        ) + merged_identity(self.files)
        settings = self.job
        weighted = " weighted, mean kept" if self._mean_kept else " weighted"
        prompts = " prompts each alone" + ("" if self.job.samples.prompt_weights else ", no weights")
        prompts += ", mean kept" if self._prompts_mean_kept else ""
        way = prompts if tokens else weighted if settings.captions.weighted_captions else ""
        return TextCache(
            self.context.workspace.cache / "text",
            identity + way + (" fp8" if self.narrow_text else ""),
            clip_skip=settings.model.clip_skip,
            max_token_length=tokens or settings.captions.max_token_length,
            dtype=self.precision.name,
            room_bytes=settings.memory.text_cache_bytes,
            at_once=1 if tokens else ENCODED_AT_ONCE,
            warn=lambda problem: self.context.say(
                f"{problem.what}: encoded captions are not cached",
                "warning",
                "captions are encoded again when needed",
            ),
        )

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Text states of captions with the encoders as they are now; loads them at first use."""
        return self._encode(captions, self._encode_captions)

    def encode_prompts(self, prompts: Sequence[str], tokens: int | None = None) -> TextStates:
        """The same of prompts, which are read as Generate reads them: with so many tokens, or as many as they have."""
        return self._encode(prompts, partial(self._encode_prompts, tokens))

    def _encode(self, captions: Sequence[str], read: EncodeText) -> TextStates:
        if self._text_model is None:
            self.context.stage("loading the text encoder")
            self._text_model = self.family.load(
                self.model,
                parts=("text_encoders", "tokenizers"),
                dtype=self.precision.compute,
                device=self.context.device,
                kohya_projection=self.job.model.kohya_projection,
            )
            merge_files(self._text_model, self.files.merged)
            self.save_memory(self._text_model)
        # Frozen encoders lie in the type they compute in: what is cached is the same for every method.
        trains = self.method.trains_text
        with self.precision.autocast(self.context.device) if trains else nullcontext():
            states = self.method.encode(captions, read)
        if not trains and not states.context.isfinite().all():
            what = "The text encoder of the base model outputs NaN or infinite values"
            raise ProblemsError.one(what, str(self.model), DAMAGED_FIX, code="model.not-finite")
        return states

    def _encode_prompts(self, tokens: int | None, prompts: Sequence[str]) -> TextStates:
        from core.generation.pipeline import encode_texts

        model, samples = self._text_model, self.job.samples
        return encode_texts(
            model,
            prompts,
            tokens=tokens or tokens_of_prompts(samples, prompts, partial(self.family.count_tokens, model)),
            clip_skip=self.job.model.clip_skip,
            weighted=samples.prompt_weights,
            mean_kept=self._prompts_mean_kept,
        )

    @property
    def _prompts_mean_kept(self) -> bool:
        """Whether prompts are weighed as sd-scripts samples by SD 1.x and 2.x."""
        return self.job.samples.compatibility == "kohya" and self.family_name != "sdxl"

    @property
    def _mean_kept(self) -> bool:
        """Whether captions are weighed as in sd-scripts 0.9."""
        return self.job.captions.weighted_captions and self.job.captions.weighted_mean == "kept"

    def _encode_captions(self, captions: Sequence[str]) -> TextStates:
        from core.families.clip import join_whole, join_windows

        return self.family.encode_captions(
            self._text_model,
            captions,
            max_token_length=self.job.captions.max_token_length,
            clip_skip=self.job.model.clip_skip,
            join=join_whole if self._mean_kept else join_windows,
            weighted=self.job.captions.weighted_captions,
            mean_kept=self._mean_kept,
        )

    def frozen_text(self) -> FrozenText:
        """Encodes what the first epoch and the samples need, then lets the encoders go."""
        started = False

        def text_of(tokens: int | None) -> FrozenText:
            def encode(captions: Sequence[str]) -> TextStates:
                import torch

                if not started:  # in the loop a stop is heard at a step's end
                    self.context.check()
                with torch.no_grad():
                    return self.encode_prompts(captions, tokens) if tokens else self.encode(captions)

            return FrozenText(self.text_cache(tokens), encode, leave, self.context.device)

        def leave() -> None:
            if started:  # at the start all is encoded before the encoders leave
                self._leave()
                self.context.stage("training")

        self.context.stage("encoding captions")
        text = text_of(None)
        kept = class_captions(self.job, self.plan.placed)
        text.need([*self.plan.captions(0), *self.validation.captions(), *kept])
        self.prompt_texts = FrozenPromptTexts(self.prompts, self.job.samples, text_of)
        self.prompt_texts.need()
        self._leave()
        started = True
        return text

    def _leave(self) -> None:
        self._text_model = None

    # -- model and network

    def load_model(self, text: Text | None) -> Any:
        """The U-Net, and the text encoders when they train."""
        self.context.stage("loading the model")
        parts = ("unet",) if text is not None else ("unet", "text_encoders", "tokenizers")
        loaded = load_trained(self, parts)
        loaded.vae = self._vae_model
        merge_files(loaded, self.files.merged)
        if text is None:
            self._text_model = loaded
        self.save_memory(loaded)
        if self.narrows_beside:
            for module in (loaded.unet, *loaded.text_encoders):
                module.to(self.context.device)
        return loaded

    @property
    def narrows_beside(self) -> bool:
        """Whether what trains beside a U-Net in fp8 is loaded in RAM first: on a GPU it would briefly need the
        space of 16 bits."""
        memory = self.job.memory
        narrow = memory.narrow_unet and not self.job.method.whole_model
        return narrow and not memory.lowram and not self.job.sharding.active

    @property
    def narrow_text(self) -> bool:
        """Whether text encoders are in fp8. Training tokens needs higher precision: their gradients are small."""
        return self.job.memory.fp8_base and self.job.method.changes == "network"

    def save_memory(self, loaded: Any) -> None:
        """The switches of the memory group, on the parts that are loaded."""
        memory, unet = self.job.memory, loaded.unet
        if unet is not None:
            set_attention(unet, memory.attention)
            if memory.narrow_unet:
                narrow(unet)
        if self.narrow_text:
            for encoder in loaded.text_encoders:
                narrow(encoder)
        if memory.gradient_checkpointing and unet is not None:
            checkpoint_unet(unet, memory.checkpoint_blocks)
            for encoder in loaded.text_encoders:
                checkpoint_text_encoder(encoder)


def build_run(job: TrainJob, context: JobContext, chosen: Choose = lambda report: report) -> Run:
    """Everything up to the first step. `job` has its seed.

    chosen   which of the images take part; None: all
    """
    builder = Builder(job, context, chosen)
    processes = context.processes
    if processes.first:
        _write_fingerprint(builder)
    with processes.first_does():  # and find on disk what it encoded
        latents = build_latents(builder)
    trains_text = builder.method.trains_text
    with processes.first_does():
        text: Text | None = None if trains_text else builder.frozen_text()
    components = builder.load_model(text)
    if text is None:
        builder.prompt_texts = TrainedPromptTexts(builder.encode_prompts)
    with ExitStack() as undo:
        undo.callback(latents.close)
        run = _assemble(builder, components, text or TrainedText(builder.encode), latents, undo)
        undo.pop_all()
    return run


def _assemble(builder: Builder, components: Components, text: Text, latents: Latents, undo: ExitStack) -> Run:
    """undo: what the process is left with where this ends in an error"""
    from core.networks.frozen import install
    from core.optimization.clipping import NonFiniteGuard

    job, context, device = builder.job, builder.context, builder.context.device
    processes = context.processes
    parts = builder.method.build(components)
    for problem in builder.method.advice:
        context.say(problem.what, "warning", problem.fix)
    if device.startswith("cpu") and not job.memory.torch_compile and not job.sharding.shares_weights:
        install(components.unet)  # frozen convolutions in the form oneDNN computes in; the results are the same
    compiled = compile_blocks(builder, components.unet)
    if compiled is not None:
        undo.callback(compiled.release)
    optimizer = _optimizer(builder, parts)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    guard = NonFiniteGuard(device, job.schedule.skip_non_finite)
    prior = prepare_prior(builder, text)
    stepper = make_stepper(builder, components, parameters, optimizer, guard)
    undo.callback(stepper.release)
    tracker = make_tracker(job, context.folder.logs, context.say) if processes.first else Trackers([], context.say)
    undo.callback(tracker.close)
    precision = builder.precision
    total = builder.report.total_steps
    latents.scale = components.vae_scale
    run = Run(
        job=job,
        context=context,
        seed=builder.seed,
        plan=builder.plan,
        total=total,
        precision=precision,
        components=components,
        method=builder.method,
        latents=latents,
        text=text,
        prompts=builder.prompts,
        prompt_texts=builder.prompt_texts,
        parameters=parameters,
        optimizer=stepper.optimizer,
        guard=guard,
        stepper=stepper,
        objective=objective_of(job, context, components),
        tracker=tracker,
        facts={
            "sentence": builder.report.sentence,
            "vae_path": builder.vae,
            "report": builder.report,
            "memo": builder.memo,
        },
        losses=LossBuffer(scaled=precision.scaled, allowed=job.schedule.skip_non_finite),
        watch=Watch(builder.plan.epochs.updates_in(0)),
        validation=builder.validation,
        prior=prior,
        compiled=compiled,
        uploads=Uploads(job.hub if processes.first else HubSettings(), secret("huggingface_token"), context.say),
    )
    run.uploads.look()
    run.tasks = Tasks(run)
    return run


def _optimizer(builder: Builder, parts: Any) -> Optimizer:
    from core.optimization.fused import split_groups
    from core.optimization.groups import parameter_groups
    from core.optimization.optimizers import build_optimizer

    job = builder.job
    groups = parameter_groups(job.optimizer, parts, scale_factor(job, builder.context.processes.count))
    if job.method.whole_model and job.memory.fused_optimizer_groups:
        groups = split_groups(groups, job.memory.fused_optimizer_groups)
    return build_optimizer(job.optimizer, groups, builder.seed)


def _decided_before(file: Path, device: str) -> str | None:
    """The dtype that a run started with on such a device; None for a new run, and on another kind of device."""
    try:
        known = read_json_object(file)
    except (ProblemsError, OSError):
        return None
    kind, found = str(known.get("device")).partition(":")[0], known.get("precision")
    return found if kind == device.partition(":")[0] and found in ("no", "bf16", "fp16") else None


def _write_fingerprint(builder: Builder) -> None:
    """dataset.json: what the run trains from, and what its validation measures. A run that continues says when they are
    not the same any more."""
    path = builder.context.folder.dataset_file
    memo, token = builder.context.workspace.private / "index.sqlite", builder.context.token
    now = dataset_fingerprint(builder.report.placed, memo_path=memo, cancel=token)
    measured = builder.validation.images
    found = dataset_fingerprint(measured, memo_path=memo, cancel=token)["images"]
    now["validation"] = {
        "seed": builder.job.validation.validation_seed,
        "timesteps": timesteps_of(builder.job.noise),
        "images": [row | _as_measured(each) for row, each in zip(found, measured, strict=True)],
    }
    if builder.validation.looks and not builder.validation.by_hand:
        now["validation"]["pairs"] = builder.validation.pairs
    now["measured_with"] = "validation seed"  # earlier versions drew latents by the training's
    if path.exists():
        before = _earlier_fingerprint(path)
        if before != {name: now[name] for name in before if name in now}:  # earlier versions wrote no "validation"
            builder.context.say(
                "The images or captions changed since this run started; the present ones are used", "warning"
            )
    atomic.write_json(path, now)


def _earlier_fingerprint(path: Path) -> dict[str, Any]:
    """{} where it is damaged, which then says nothing; it is written anew."""
    try:
        return read_json_object(path, max_bytes=256_000_000, max_values=3_000_000)
    except ProblemsError:
        return {}


def _as_measured(placed: Placed) -> dict[str, Any]:
    """What validation makes of an image beside its size."""
    images = placed.concept.images
    return {"caption": caption_of(placed), "masked": images.masked_loss or images.alpha_mask}


def prepare_caches(job: PrepareJob, context: JobContext) -> str:
    """The prepare job: latents and text states on disk, so that a training with these settings starts at once."""
    builder = Builder(with_seed(job, context), context)
    if job.prepare.write_metadata:  # first: what is wrong with it should not be heard after an hour of caching
        path = resolve_path(job.prepare.write_metadata)
        written = write_metadata(path, builder.report.placed, full_path=job.prepare.full_path)
        context.say(f"{written.images} images are in {printable(path)}")
    prepare_latents(builder)
    if job.prepare.write_npz:
        write_npz_caches(builder)
    if not builder.method.trains_text and (problem := builder.frozen_text().unwritten):
        raise ProblemsError([problem])
    context.say(f"The caches are ready: {builder.report.sentence}")
    return "done"
