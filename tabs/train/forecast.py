"""Memory forecast of the training, the memory and speed slider, and the memory test of two steps.

The forecast needs torch, so it is computed in the background: automatically once torch is loaded, else on request.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from core.networks.kinds import kind_named
from core.record.problems import ProblemsError
from core.record.units import memory_text, parameters_text, size_text
from core.record.workspace import Workspace
from core.settings.base import value_of
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from core.settings.presets.levels import level_of, levels
from core.settings.rules.dataset import random_augmentations
from core.settings.sharding import ShardingSettings
from core.settings.values import shown_value
from core.training.loop.prior import needs_untrained_model
from tabs.form.project import FIELDS, Project
from tabs.roots import Roots
from tabs.server.browsers import Browser
from tabs.train.checks import Checks

if TYPE_CHECKING:
    from core.engine.engine import Engine
    from core.training.memory.plan import MemoryFacts

MB = 1_000_000
PARTS = {
    "weights": "weights",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "activations": "activations",
    "cache": "caches",
    "spare": "PyTorch",
}


# Settings that a plan reads, by group; besides them it reads the sizes and batches of all folders.
COUNTED = {
    "method": "kind train_text_encoder stop_text_encoder_training stop_text_encoder_epochs prior ema ema_device",
    "model": "base_model vae family",
    "network": "kind initialization rank conv_rank train_unet train_text_encoder block_dims conv_block_dims down_lr_weight mid_lr_weight"
    " up_lr_weight block_lr_zero_threshold base_weights base_weights_layers layers exclude_layers layer_dims train_norm",
    "memory": "mixed_precision full_precision fused_backward_pass fused_optimizer_groups num_processes gradient_checkpointing"
    " checkpoint_blocks attention fp8_base fp8_base_unet vae_precision vae_batch_size cache_latents lowram",
    "sharding": " ".join(ShardingSettings.model_fields),
    "dataset": "resolution train_batch_size",
    "captions": "max_token_length",
    "optimizer": "optimizer_type compatibility max_grad_norm",
    "schedule": "gradient_accumulation_steps",
}


class Forecast:
    """The newest forecast and memory test, shared by all browsers."""

    def __init__(self, engine: Engine, workspace: Workspace, project: Project, roots: Roots, checks: Checks):
        self._engine, self._workspace, self._project, self._roots = engine, workspace, project, roots
        self._checks = checks
        self._lock = threading.Lock()
        self._task: Any = None
        self._requested = False
        self._key: Any = None
        self._test_key: Any = None  # the `plan_key` of the newest memory test of this server
        self._facts: dict[str, Any] = {}
        self._hints: dict[str, str] = {}
        self._device = ""

    def parts(self, tab: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return the card's part of the page's periodic update while Train is open, {"forecast": data}; else {}."""
        return {"forecast": self.facts(self._project.job)} if tab in ("Train", "", None) else {}

    # -- the forecast

    def request(self, data: dict[str, Any], browser: Browser) -> None:
        """Compute forecasts from now on, even if torch must be loaded for that. data, browser: not used"""
        self._requested = True

    def hints(self, job: TrainJob) -> dict[str, str]:
        """Return {path of a memory setting: text on what it saves in this job}; {} if there is no forecast of this job."""
        return self._hints if self._key == plan_key(job) else {}

    def facts(self, job: TrainJob) -> dict[str, Any]:
        """Return the data of the card. Starts a new forecast if the job has changed.

        From the last forecast, none before the first: "parts", "total", "device", "saved", "advice" (`_computed`) or "problem".
        "fresh", "busy", "wanted"   whether it is of this job, is being computed, may be computed
        "levels", "level"           [{"number", "title", "description"}], number of the job's level or None
        "tried", "disk"             `_test_state`, `Checks.known_disk`
        """
        key = plan_key(job)
        fresh = self._key == key
        allowed = (self._requested or "torch" in sys.modules) and not self._roots.refused(job)
        with self._lock:
            busy = self._task is not None and not self._task.done
            if allowed and not fresh and not busy:
                self._task, busy = self._engine.light(self._plan, job, key, title="memory forecast"), True
        level_rows = [
            {"number": each.number, "title": each.title, "description": each.description}
            for each in levels(job, self._device)
        ]
        return {
            **(self._facts if fresh else {key: value for key, value in self._facts.items() if key != "problem"}),
            "fresh": fresh,
            "busy": busy,
            "wanted": allowed,
            "levels": level_rows,
            "level": level_of(job, self._device),
            "tried": self._test_state(job),
            "disk": self._checks.known_disk(job),
        }

    def _plan(self, job: TrainJob, key: Any, task: Any) -> None:
        """Compute the forecast of a job and the hints below its settings, in the background. key: `plan_key` of the job"""
        from core.record import machine
        from core.training.memory.plan import facts_of
        from core.training.memory.store import forecast_key, store_forecast, stored_forecast

        self._device = self._device or machine.default_device()
        model = self._checks.model(job.model.base_model, job.model.family)
        try:
            if model["problem"]:
                raise ProblemsError.one(model["problem"], "model.base_model", model["fix"], code="model.unusable")
            facts = facts_of(job, self._workspace, self._device)
            stored_key = forecast_key(key, facts, *(machine.memory(each)[1] for each in (self._device, "cpu")))
            stored = stored_forecast(stored_key, self._workspace)
            if stored is None or stored.keys() != {"facts", "hints"}:
                stored = _computed(job, facts)
                store_forecast(stored_key, stored, self._workspace)
            data, hints = stored["facts"], stored["hints"]
        except ProblemsError as error:
            data, hints = {"problem": error.problems[0].what}, {}
        with self._lock:
            self._key, self._facts, self._hints = key, data, hints

    # -- the slider

    def set_level(self, data: dict[str, Any]) -> None:
        """Apply the settings of slider position data["level"] to the form. Raises ProblemsError if there is no such position."""
        project = self._project
        job = project.job
        level = next((each for each in levels(job, self._device) if str(each.number) == str(data.get("level"))), None)
        if level is None:
            raise ProblemsError.one("The slider has no such position", "memory", "move it again", "forecast.bad-level")
        project.set_values(level.values, did=f"memory and speed: {level.title}")

    # -- the memory test

    def queue_test(self, data: dict[str, Any], browser: Browser) -> None:
        """Queue a memory test: a job of two steps, with the largest and the smallest batch. Raises ProblemsError if one is queued.
        data, browser: not used"""
        engine = self._engine
        if any(entry.task == "probe" and entry.state in ("waiting", "running") for entry in engine.queue()):
            fix = "wait for it, or cancel it in the queue"
            raise ProblemsError.one("A memory test is already queued", "Forecast", fix, "forecast.already-queued")
        job = self._project.job
        engine.submit("probe", job, f"a test of {job.saving.output_name}")
        self._test_key = plan_key(job)

    def _test_state(self, job: TrainJob) -> dict[str, Any]:
        """Return {"state", "message", "title", "old"} of the newest memory test; {} without one.

        "old": whether the test had settings other than the job's that affect memory
        """
        entry = next((each for each in reversed(self._engine.queue()) if each.task == "probe"), None)
        if entry is None:
            return {}
        message = wait.message if (wait := self._engine.waits().get(entry.id)) else entry.message
        if entry.state in ("running", "done") and entry.run:
            try:
                facts = self._engine.snapshot(entry.run)
            except ProblemsError:  # its folder was deleted for newer ones
                return {}
            messages = [line["text"] for line in facts["log"] if line["level"] == "info"]
            message = messages[-1] if entry.state == "done" and messages else str(facts.get("stage") or "")
        of_other_settings = self._test_key is not None and self._test_key != plan_key(job)
        return {"state": entry.state, "message": message, "title": entry.title, "old": of_other_settings}


def _computed(job: TrainJob, facts: MemoryFacts) -> dict[str, Any]:
    """Return {"facts", "hints": as of `Forecast.hints`} of a job. Raises ProblemsError.

    facts: {"parts": [{"name", "bytes"}], "total", "device": bytes needed and available, "saved": {level: bytes}, "advice": sentences}
    """
    from core.record import machine
    from core.training.memory.advice import advise, level_plans, switch_savings
    from core.training.memory.plan import memory_plan

    plan, total = memory_plan(job, facts), machine.memory(facts.device)[1]
    parts = [{"name": PARTS[name], "bytes": _rounded(size)} for name, size in plan.parts().items() if _rounded(size)]
    data: dict[str, Any] = {"parts": parts, "total": _rounded(plan.total), "device": _rounded(total)}
    data["saved"] = {str(each.level.number): _rounded(each.saved) for each in level_plans(job, facts)}
    data["advice"] = _outside_gpu(plan.memory, plan.disk)
    data["advice"] += [each.sentence() for each in advise(job, facts)] if plan.total > total else []
    return {"facts": data, "hints": _hints(job, switch_savings(job, facts)) | _layer_hint(job, facts)}


def _hints(job: TrainJob, savings: dict[str, int]) -> dict[str, str]:
    """Return {path: hint} of memory settings. savings: {path: bytes that the setting saves}"""
    from core.training.memory.advice import switches

    hints = {}
    for path, (_, saving) in switches(job).items():
        if path in savings:
            choice = "" if saving is True else f" with {shown_value(FIELDS[path], saving)}"
            hints[path] = f"In this job: {memory_text(savings[path])} less{choice}."
    return hints


def _layer_hint(job: TrainJob, facts: MemoryFacts) -> dict[str, str]:
    """Return {path: text on the numbers of layers and trained parameters} for the setting that chooses layers; {} without a network."""
    from core.methods.kinds.lora import trained_numbers
    from core.networks.layers import count_layers, meta_targets

    network = job.network
    if not job.method.traits.uses_network or network.dim_from_weights:
        return {}
    names = [facts.denoiser_name, *(facts.text_parts() if network.train_text_encoder else ())]
    targets = meta_targets(facts.family, {name: facts.parts[name].config for name in names})
    hits = count_layers(network, kind_named(network.kind).kind_settings(job), targets)
    numbers = sum(trained_numbers(job, facts.family, facts.parts).values())
    return {"network.layers": f"In this job: {hits}, {parameters_text(numbers)} trained parameters."}


def _outside_gpu(memory: int, disk: int) -> list[str]:
    """Return texts on what DeepSpeed offloads to RAM (`memory`) and disk (`disk`), both in bytes."""
    from core.record import machine

    ram = machine.memory("cpu")[1]
    text = f"RAM takes about {memory_text(memory)} of {memory_text(ram)} besides"
    texts = [text + (": does not fit" if memory > ram else "")] if memory else []
    return texts + ([f"the fast disk takes about {size_text(disk)}"] if disk else [])


def plan_key(job: TrainJob) -> Any:
    """Return the settings that a forecast depends on."""
    folders = [
        (images.resolution, images.more_resolutions, images.train_batch_size, bool(random_augmentations(images)))
        for images in (concept.images for concept in concepts_of(job))
    ]
    values = [value_of(job, f"{group}.{name}") for group, names in COUNTED.items() for name in names.split()]
    kind_settings = kind_named(job.network.kind).kind_settings(job)
    others = needs_untrained_model(job), job.optimizer.optimizer_args.get("beta1")
    return folders, values, kind_settings, max(1, len(job.embedding.words)), others


def _rounded(size: int) -> int:
    """Return bytes rounded to a whole number of MB."""
    return round(size / MB) * MB
