"""Lists the tokens that a LoRA's text encoder layers change most (as sd-scripts' lora_interrogator, for both encoders of SDXL)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.clip import last_states
from core.families.locate import check_clip_skip, family_of, model_path
from core.formats.lora.names import module_path
from core.networks.adapter_file import lora_outline
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError, collected, problems_at, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.model import traits_of
from core.settings.tools.weights import InterrogateLoraSettings
from core.tools.charts import table
from core.tools.files import lora_of
from core.tools.loras.headers import check_base_model, model_of
from core.tools.plans import FilePlan

if TYPE_CHECKING:
    from core.families.components import Components

GROUP = "interrogate_lora"
SHOWN_LINES = 20  # of each encoder; the table has all


def plan(settings: InterrogateLoraSettings, workspace: Workspace) -> FilePlan:
    """Check the LoRA and its base model, and return the plan. Raises ProblemsError with all problems."""
    problems: list[Problem] = []
    path = collected(problems, lora_of, settings.file, workspace, f"{GROUP}.file")
    where = f"{GROUP}.base_model"
    if not settings.base_model:
        what, fix = "No base model is given", "choose the model that the LoRA was trained on"
        problems.append(Problem(what, where, fix, code="tools.no-base-model"))
    elif path is not None:
        collected(problems, check_base_model, settings.base_model, path, workspace, where)
    if path is not None and not problems:
        collected(problems, _refuse_without_text_layers, path)
        base = model_path(settings.base_model or "", workspace)
        collected(problems, check_clip_skip, settings.clip_skip, base, family_of(base), f"{GROUP}.clip_skip")
    raise_if_errors(problems)
    assert path is not None
    return FilePlan(f"compare the tokens of {settings.base_model} with and without {display_path(path)}", path)


def _refuse_without_text_layers(path: Path) -> None:
    """Raise ProblemsError for a LoRA without text encoder layers."""
    with problems_at(f"{GROUP}.file"):
        tensors = lora_outline(path).tensors
    parts = {module[0] for name in tensors if (module := module_path(name.partition(".")[0]))}
    if parts <= {"unet"}:
        what = f"{path.name} has no text encoder layers: it changes no token"
        fix = "choose a LoRA that was trained with the text encoder"
        raise ProblemsError.one(what, f"{GROUP}.file", fix, "tools.no-text-encoder")


def do(settings: InterrogateLoraSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """Score each token by the mean |change| of the states of [BOS, token, EOS] by the LoRA. Raises ProblemsError for a LoRA that does not
    change the text encoders."""
    from core.networks.files import read_network
    from core.networks.network import attached

    path = plan.path
    model = model_of(settings.base_model, path, context, ("text_encoders", "tokenizers"))
    assert model is not None
    with problems_at(f"{GROUP}.file"):
        network = read_network(model, path, 1.0)
    lists: dict[str, list[dict[str, Any]]] = {}
    for number, (encoder, tokenizer) in enumerate(zip(model.text_encoders, model.tokenizers, strict=True)):
        if not any(module is adapter.module for adapter in network.adapters.values() for module in encoder.modules()):
            continue
        title = f"Text encoder {number + 1}" if len(model.text_encoders) > 1 else "Text encoder"
        states = _states(model, encoder, settings.clip_skip)
        with torch.inference_mode():
            scores = _scores(states, tokenizer, settings.batch_size, lambda: attached(network), title, context)
        best = torch.argsort(scores, descending=True, stable=True)[: settings.top].tolist()
        names = tokenizer.convert_ids_to_tokens(best)
        lists[title] = [
            {"rank": rank, "id": token, "token": name.replace("</w>", " ").strip(), "score": float(scores[token])}
            for rank, (token, name) in enumerate(zip(best, names, strict=True), 1)
        ]
    if not lists:
        what, fix = f"{path.name} does not change this model's text encoders", "choose one that was trained with them"
        raise ProblemsError.one(what, f"{GROUP}.file", fix, "tools.no-text-encoder")
    lines, brief, charts = [], [], []
    for title, rows in lists.items():
        brief.append(f"{title}: {count(len(rows), 'token')}")
        lines += [
            brief[-1],
            *(f"  [{row['rank']}] {row['id']} {row['token']}: {row['score']:.5f}" for row in rows[:SHOWN_LINES]),
        ]
        cells = [[row["token"], row["id"], row["score"]] for row in rows]
        charts.append(table(title, ["Token", "Id", "Change"], cells))
    return Outcome(lines=lines, facts={"tokens": lists, "shown": charts, "brief": brief})


def _states(model: Components, encoder: Any, clip_skip: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from token ids [N, 3] to the states [N, 3, width] that the U-Net reads.

    SDXL's penultimate states without the final norm, else `last_states`.
    """
    if traits_of(model.family).penultimate:
        layer = -(clip_skip or 2)
        return lambda ids: encoder(ids.to(encoder.device), output_hidden_states=True).hidden_states[layer]
    return lambda ids: last_states(encoder, ids, clip_skip)


def _scores(
    states: Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Any,
    batch_size: int,
    with_lora: Callable[[], Any],
    title: str,
    context: JobContext,
) -> torch.Tensor:
    """Return the scores [token_count] of all ids, float32 on the CPU.

    states      (ids [N, 3]) -> states
    with_lora   () -> context in which the LoRA is applied
    """
    total = token_count(tokenizer)
    scores = torch.empty(total)
    for start in range(0, total, batch_size):
        context.check()
        context.stage(f"{title}: comparing tokens", start, total)
        tokens = torch.arange(start, min(start + batch_size, total))
        first, last = (torch.full_like(tokens, each) for each in (tokenizer.bos_token_id, tokenizer.eos_token_id))
        ids = torch.stack([first, tokens, last], dim=1)
        before = states(ids).float()
        with with_lora():
            after = states(ids).float()
        scores[start : start + len(tokens)] = (after - before).abs().mean(dim=(1, 2)).cpu()
    return scores


def token_count(tokenizer: Any) -> int:
    """Return the number of ids to score: all up to the highest special token."""
    return max(tokenizer.all_special_ids) + 1
