"""Inputs of a training, read before the model is loaded: images, files, plan, method and precision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.dataset.buckets.plan import Plan
from core.dataset.preflight import preflight
from core.dataset.report import Report
from core.families import family, type_speed
from core.families.base import Family
from core.families.locate import family_of, model_path
from core.families.precision import Precision, choose_precision, use_tf32, use_threads
from core.formats.hashes import HashMemo
from core.generation.prompt.sample_prompts import SamplePrompt
from core.methods import Method, MethodInputs
from core.networks.files import NetworkFiles
from core.record import atomic, machine
from core.record.bounded_json import read_json_object
from core.record.context import JobContext
from core.record.problems import ProblemsError, raise_if_errors
from core.record.run_folder import states_in
from core.settings.job import TrainJob
from core.settings.methods import in_force, spec_of
from core.training.building.network_files import network_files
from core.training.checks.before_start import problems_before_start
from core.training.loop.samples import prompts_of
from core.training.loop.validation import Budget, Validation, pairs_within
from core.training.saving.checkpoints import bytes_of, save_steps
from core.training.saving.resume import first_step

Select = Callable[[Report], Report]


@dataclass(frozen=True)
class Inputs:
    """Inputs of a training.

    model, vae   paths of the base model and of a separate VAE
    files        LoRA files that the job starts from or merges
    memo         cached file hashes
    prompts      sample prompts with all values set
    """

    job: TrainJob
    context: JobContext
    report: Report
    model: Path
    vae: Path | None
    family_name: str
    memo: HashMemo
    files: NetworkFiles
    plan: Plan
    validation: Validation
    method: Method
    precision: Precision
    prompts: list[SamplePrompt]

    @property
    def family(self) -> Family:
        """The model family."""
        return family(self.family_name)

    @property
    def seed(self) -> int:
        """Seed of the run's random numbers."""
        return self.plan.seed


def read_inputs(job: TrainJob, context: JobContext, select: Select = lambda report: report) -> Inputs:
    """Read the inputs of a job that has its seed. Raises ProblemsError with all problems that prevent a start.
    select: reduces the dataset report to some of its images"""
    workspace, seed = context.workspace, job.schedule.seed or 0
    with context.processes.main_process_first():  # the others read its cached measurements
        report = select(check_dataset(job, context))
    model = model_path(job.model.base_model, workspace)
    vae = model_path(job.model.vae, workspace, "model.vae") if job.model.vae else None
    family_name = family_of(model, job.model.family)
    job, model_family = in_force(job, family_name), family(family_name)
    memo = HashMemo.of(workspace)
    plan = Plan(report.placed, job, seed, report.total_steps)
    if not job.resume.skip_until_initial_step:
        plan.begin = first_step(job, plan) or 0
    validation = Validation(job, report, _validation_budget(job, context, report, plan))
    files = network_files(job, workspace, memo)
    method: Method = spec_of(job).make(MethodInputs(_with_stop(job, plan), workspace, seed, model, vae, files))
    precision = _precision(job, context, model_family.weight_bytes(model)[model_family.denoiser])
    prompts = prompts_of(job, model)
    return Inputs(
        job, context, report, model, vae, family_name, memo, files, plan, validation, method, precision, prompts
    )


def check_dataset(job: TrainJob, context: JobContext) -> Report:
    """Scan the dataset and repeat all checks, as files may have changed while the job waited in the queue; return the dataset report.
    Raises ProblemsError for errors."""
    context.stage("scanning the dataset")
    report = preflight(
        job,
        context.workspace,
        decode=True,
        cancel=context.token,
        progress=lambda done, total: context.stage("checking images", done, total),
    )
    folder = context.folder
    problems = problems_before_start(
        job,
        context.workspace,
        report,
        context.device,
        new_run=not folder.states.is_dir(),
        written=bytes_of(folder.checkpoints) + bytes_of(folder.states),
        cancel=context.token,
    )
    raise_if_errors(problems)
    for problem in problems:
        if problem.code == "disk.space":  # earlier jobs of the queue have filled the disk since the start was checked
            context.warn(problem)
    return report


def _with_stop(job: TrainJob, plan: Plan) -> TrainJob:
    """Return the job with `stop_text_encoder_epochs` converted to `stop_text_encoder_training`, the first step of that epoch."""
    epochs = job.method.stop_text_encoder_epochs
    if epochs is None:
        return job
    changes = {"stop_text_encoder_training": plan.epochs.first_step(epochs), "stop_text_encoder_epochs": None}
    return job.with_settings(method=changes)


def _validation_budget(job: TrainJob, context: JobContext, report: Report, plan: Plan) -> Budget:
    """Return the budget of validation. A resumed run measures as many (image, timestep) pairs as before, so that its checkpoints
    compare."""
    total, updates = report.total_steps, plan.epochs.steps_in(0)
    views = sum(report.views.values()) * total / max(updates, 1) / context.processes.count
    saves = save_steps(job.saving, plan, total)
    try:
        pairs = int(read_json_object(context.folder.dataset_file)["validation"]["pairs"])
    except (ProblemsError, OSError, ValueError, KeyError, TypeError):
        pairs = pairs_within(views, len(saves))
    return Budget(views, saves, pairs)


def _precision(job: TrainJob, context: JobContext, size: int) -> Precision:
    """Choose the precision of a run; also set torch's threads and TF32. size: bytes of the denoiser's weights in the file"""
    use_threads(context.device, size)
    use_tf32(job.memory.allow_tf32)
    settings = job.memory
    if settings.mixed_precision == "auto":
        settings = settings.model_copy(update={"mixed_precision": _auto_precision(job, context, size)})
    return choose_precision(settings, context.device, size, method=job.method)


def _auto_precision(job: TrainJob, context: JobContext, size: int) -> str:
    """Return the dtype for mixed precision "auto": "no", "bf16" or "fp16". Decided at the first start of a run and stored, as a resumed run
    must not change it.
    size: bytes of the denoiser's weights in the file"""
    folder, device = context.folder, context.device
    with context.processes.main_process_first():
        earlier = _earlier_precision(folder.machine_file, device)
        if earlier:
            return earlier
        bf16_pays = type_speed.bf16_pays
        if states_in(folder.states):  # of an earlier version, which measured nothing
            bf16_pays = partial(machine.bf16_is_fast, device)
        decided = choose_precision(job.memory, device, size, method=job.method, bf16_pays=bf16_pays).name
        if context.processes.first:
            atomic.write_json(folder.machine_file, {"device": device, "precision": decided})
        return decided


def _earlier_precision(file: Path, device: str) -> str | None:
    """Return the dtype stored in the run's machine file, "no", "bf16" or "fp16"; None for a new run, and on another kind of device."""
    try:
        stored = read_json_object(file)
    except (ProblemsError, OSError):
        return None
    device_kind, dtype = str(stored.get("device")).partition(":")[0], stored.get("precision")
    return dtype if device_kind == device.partition(":")[0] and dtype in ("no", "bf16", "fp16") else None
