"""Images with new words: the vectors of a known word draw that word's image, and the model stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from core.cli.main import main
from core.families import family
from core.formats.detect import identify
from core.formats.embedding_file import LAYERS, TOKEN, read_embedding, read_shapes, write_embedding
from core.generation.images.a1111 import a1111_text, from_a1111_text
from core.generation.images.metadata import read_image_metadata
from core.generation.making import ImageMaker
from core.generation.model.embeddings import (
    Embedding,
    embeddings_attached,
    find_embedding,
    find_embeddings,
    token_widths,
)
from core.generation.model.library import Scan, embedding_vectors, named_embeddings, portable_name
from core.generation.model.loras import loras_attached
from core.generation.model.store import make_store
from core.generation.plan.files import find_sources
from core.generation.plan.plan import plan_of
from core.generation.prompt.states import PromptStates
from core.generation.run import run_generate
from core.networks.adapter_file import save_lora
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace, display_path
from core.settings.check import build
from core.settings.generation.generate import GenerateSettings
from core.settings.job import GenerateJob
from core.settings.model import ModelSettings
from tests.models import tiny_file, tiny_folder
from tests.prompts import encode_prompts
from tests.reports import Heard
from tests.sampling import sampled

STARTER = PROJECT / "models" / "starter"


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request, tmp_path_factory):
    name = request.param
    if name == "sd1":
        return request.getfixturevalue("starter")
    return family(name).load(tiny_folder(name, tmp_path_factory.mktemp("tiny") / name))


def rows_of(components, text):
    """The vectors of the words of a text in each text encoder."""
    found = []
    for encoder, tokenizer in zip(components.text_encoders, components.tokenizers, strict=True):
        ids = tokenizer(text)["input_ids"][1:-1]
        found.append(encoder.get_input_embeddings().weight[ids].detach().float())
    return found


def word_file(path, components, text, layered=False, token=""):
    """A file whose vectors are those of the words of `text`."""
    rows = rows_of(components, text)
    names = LAYERS if layered else ("clip_l", "clip_g") if len(rows) == 2 else ("emb_params",)
    vectors = dict(zip(names, rows * len(LAYERS) if layered else rows, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_embedding(path, vectors, {TOKEN: token} if token else {}, torch.float32)
    return path


def latents(components, states):
    return sampled(components, states, seeds=[3], width=64, height=64, steps=2)


def state(components):
    modules = [components.denoiser, *components.text_encoders]
    weights = {
        f"{n}.{name}": value.clone() for n, one in enumerate(modules) for name, value in one.state_dict().items()
    }
    hooks = [len(module._forward_pre_hooks) for one in modules for module in one.modules()]
    return weights, hooks, [len(tokenizer) for tokenizer in components.tokenizers]


def states_of(encoder, prompt, negative=""):
    return PromptStates.of(encoder.encode_each([prompt, negative]))


@pytest.mark.slow(only=("sd2", "sdxl"))
def test_the_vectors_of_known_words_draw_the_image_of_these_words_and_the_model_is_as_before(model, tmp_path):
    words = [
        Embedding("zunkel", word_file(tmp_path / "zunkel.safetensors", model, "red fox")),
        Embedding("zunkel-b", word_file(tmp_path / "b.pt", model, "cup")),
    ]
    before = state(model)
    plain = latents(model, encode_prompts(model, "a red fox and a cup", "no cup"))
    with embeddings_attached(model, words) as new:
        drawn = latents(model, states_of(new, "a Zunkel and a zunkel-b", "no zunkel-b"))
        assert not new.missing("a ZUNKEL", "zunkel-b") and new.missing("zunkel-b, zunkels") == ["zunkel"]
    assert torch.equal(drawn, plain)
    after = state(model)
    assert before[0].keys() == after[0].keys() and before[1:] == after[1:]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert not torch.equal(latents(model, encode_prompts(model, "a Zunkel and a zunkel-b", "no zunkel-b")), plain)


@pytest.mark.slow
def test_a_word_with_a_vector_for_each_layer_draws_beside_a_plain_one(tmp_path):
    components = family("sd1").load(STARTER)
    layered = word_file(tmp_path / "xti.safetensors", components, "red fox", layered=True)
    words = [Embedding("xti", layered), Embedding("brabol", word_file(tmp_path / "brabol.pt", components, "cup"))]
    plain = latents(components, encode_prompts(components, "a red fox, a cup"))
    with embeddings_attached(components, words) as new:
        states = states_of(new, "a xti, a brabol")
        assert states.positive.context.shape[:2] == (1, 16)
        assert torch.equal(latents(components, states), plain)
    vectors = read_embedding(layered)
    vectors["OUT11"] = -vectors["OUT11"]
    write_embedding(layered, vectors, {}, torch.float32)
    with embeddings_attached(components, words) as new:
        assert not torch.equal(latents(components, states_of(new, "a xti, a brabol")), plain)
    assert torch.equal(latents(components, encode_prompts(components, "a red fox, a cup")), plain)


@pytest.mark.slow
def test_a_model_is_whole_again_after_an_error(tmp_path):
    components = family("sd1").load(STARTER)
    table = components.text_encoders[0].get_input_embeddings()
    words = [Embedding("xti", word_file(tmp_path / "xti.pt", components, "fox", layered=True))]
    with pytest.raises(KeyboardInterrupt), embeddings_attached(components, words):
        raise KeyboardInterrupt
    assert components.text_encoders[0].get_input_embeddings() is table
    assert not any(module._forward_pre_hooks for module in components.denoiser.modules())


# -- whole jobs


@pytest.fixture
def workspace(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")


def job_of(model=STARTER, **asked):
    asked = {"prompt": "a fox", "seed": 1, "steps": 2, "width": 64, "height": 64} | asked
    return GenerateJob(generate=GenerateSettings(**asked), model=ModelSettings(base_model=str(model)))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).copy()


@pytest.mark.slow
def test_a_job_draws_with_embeddings_of_runs_and_of_the_models_folder_and_its_image_names_them(workspace):
    components = family("sd1").load(STARTER, parts=("text_encoders", "tokenizers"))
    run = word_file(workspace.runs / "r" / "checkpoints" / "zunkel.safetensors", components, "fox")
    mine = word_file(workspace.models / "embeddings" / "cup-1.pt", components, "cup")
    assert {label: path for label, path in Scan(workspace).embeddings()} == {
        "r / zunkel": run,
        "embeddings/cup-1": mine,
    }
    store, heard = make_store(), Heard()

    def draw(**asked):
        job = job_of(**asked)
        files = run_generate(job, workspace, store=store, reports=heard)
        return files[0]

    plain = draw(prompt="a fox and a cup")
    new = draw(prompt="a zunkel and a brabol", embeddings=["zunkel", "brabol=cup-1"])
    assert np.array_equal(pixels(new), pixels(plain))
    assert not heard.said
    record = read_image_metadata(new)
    assert record.job.generate.embeddings == [
        "outputs/runs/r/checkpoints/zunkel.safetensors",
        "brabol=models/embeddings/cup-1.pt",
    ]
    assert {name: len(digest) for name, digest in record.hashes.embeddings.items()} == {"zunkel": 64, "brabol": 64}
    assert from_a1111_text(a1111_text(record.job, record.hashes)).job.generate.embeddings == ["zunkel", "brabol"]
    again = run_generate(record.job.model_copy(update={"model": job_of().model}), workspace, store=store)
    assert np.array_equal(pixels(again[0]), pixels(plain))
    draw(prompt="zunkels", embeddings=["zunkel"])
    (text,) = heard.said
    assert "'zunkel'" in text and "no effect" in text


def test_files_that_do_not_fit_are_refused_together_before_anything_loads(workspace, tmp_path):
    def file(name, **shapes):
        save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / f"{name}.safetensors")
        return str(tmp_path / f"{name}.safetensors")

    layers = dict.fromkeys(LAYERS, (1, 64))
    asked = [
        file("wide", emb_params=(1, 768)),
        file("two", emb_params=(1, 1024)),
        file("xl", clip_l=(1, 768), clip_g=(1, 1280)),
        file("part", **{name: layers[name] for name in LAYERS[1:]}),
        file("good", emb_params=(64,)),
        "Good=" + file("other", emb_params=(2, 64)),
        "nowhere",
    ]
    with pytest.raises(ProblemsError) as caught:
        find_sources(job_of(embeddings=asked), workspace)
    expected = {
        "embedding.other-width": ("768", "64"),
        "embedding.other-family": ("SD 2.x", "SD 1.x"),
        "embedding.other-family 2": ("SDXL", "SD 1.x"),
        "embedding.not-an-embedding": (),
        "embedding.token-twice": ("'Good'",),
        "embedding.not-found": ("'nowhere'",),
    }
    assert caught.value.codes == [code.removesuffix(" 2") for code in expected]
    for problem, facts in zip(caught.value.problems, expected.values(), strict=True):
        assert all(fact in problem.what for fact in facts)
    xl = tiny_folder("sdxl", tmp_path / "xl_model")
    asked = [
        file("lone", clip_l=(1, 32)),
        file("layers", **dict.fromkeys(LAYERS, (1, 32))),
        file("uneven", clip_l=(1, 32), clip_g=(2, 48)),
        file("swapped", clip_l=(1, 48), clip_g=(1, 32)),
    ]
    with pytest.raises(ProblemsError) as caught:
        find_sources(job_of(xl, embeddings=asked), workspace)
    assert caught.value.codes == [
        "embedding.other-tensors",
        "embedding.other-tensors",
        "embedding.unequal-counts",
        "embedding.other-width",
    ]
    assert "lone.safetensors" in (lone := caught.value.problems[0].what) and "clip_l and clip_g" in lone
    assert "32" in caught.value.problems[3].what


@pytest.mark.slow
def test_widths_are_read_from_files_and_folders_alike(tmp_path):
    for name, widths in (("sd1", [32]), ("sd2", [32]), ("sdxl", [32, 48])):
        assert token_widths(tiny_folder(name, tmp_path / name)) == widths
        assert token_widths(tiny_file(name, tmp_path / f"{name}.safetensors")) == widths


def test_a_header_tells_the_shapes_that_reading_gives(tmp_path):
    torch.save(
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": torch.ones(3, 64)}}, tmp_path / "a.pt"
    )
    save_file({"clip_g": torch.ones(2, 48), "clip_l": torch.ones(2, 32)}, tmp_path / "b.safetensors")
    save_file({"emb_params": torch.ones(64)}, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.safetensors", "c.safetensors"):
        read = read_embedding(tmp_path / name)
        assert list(read_shapes(tmp_path / name).items()) == [(key, tuple(value.shape)) for key, value in read.items()]


def test_vectors_that_are_no_numbers_are_refused_with_the_files_name(tmp_path):
    save_file({"emb_params": torch.full((4, 64), torch.nan)}, tmp_path / "zunkel.safetensors")
    with pytest.raises(ProblemsError) as caught:
        read_embedding(tmp_path / "zunkel.safetensors")
    [problem] = caught.value.problems
    assert problem.code == "weights.not-finite" and "zunkel.safetensors contains NaN" in problem.what


def test_the_word_is_the_files_name_or_the_one_before_the_equals_sign(workspace, tmp_path):
    path = tmp_path / "a=b" / "mira.v2.pt"
    path.parent.mkdir()
    path.touch()
    assert find_embedding(str(path), workspace) == Embedding("mira.v2", path)
    assert find_embedding(f" mira ={path}", workspace) == Embedding("mira", path)


def test_the_command_line_names_the_file_of_a_runs_token_in_a_prompt(tmp_path, capsys):
    components = family("sd1").load(STARTER, parts=("text_encoders", "tokenizers"))
    run = tmp_path / "out" / "runs" / "20260101-120000_zunkel" / "checkpoints"
    run.mkdir(parents=True)
    file = word_file(run / "zunkel.safetensors", components, "fox")
    words = ["generate", "--model.base_model", str(STARTER), "--outputs", str(tmp_path / "out"), "--check", "--prompt"]
    assert main([*words, "a Zunkel here"]) == 0
    assert f'--embedding "{display_path(file)}' in capsys.readouterr().err
    assert main([*words, "a zunkels"]) == 0 and main([*words, "a zunkel", "--embedding", str(file)]) == 0
    assert "is read as text" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_draws_with_embeddings_and_refuses_what_is_not_there(tmp_path, capsys):
    components = family("sd1").load(STARTER, parts=("text_encoders", "tokenizers"))
    one = word_file(tmp_path / "zunkel.pt", components, "fox")
    words = ["--model.base_model", str(STARTER), "--outputs", str(tmp_path / "out"), "--generate.width", "64"]
    words = ["generate", *words, "--generate.height", "64", "--generate.steps", "1", "--generate.seed", "1"]
    words += ["--prompt", "a zunkel"]
    assert main([*words, "--embedding", str(one), "--embedding", f"brabol={one}"]) == 0
    said = "".join(capsys.readouterr())
    assert "'brabol'" in said and "'zunkel'" not in said
    [path] = (tmp_path / "out" / "images").rglob("*.png")
    assert read_image_metadata(path).job.generate.embeddings == ["zunkel.pt", "brabol=zunkel.pt"]
    assert main([*words, "--embedding", "nowhere", "--check"]) == 2
    assert "No embedding 'nowhere'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_word_with_a_vector_for_each_layer_works_with_and_regions_guidance_kinds_and_stages(tmp_path):
    """The vectors of known words make the latents of these words, whatever else is asked for."""
    components, space = family("sd1").load(STARTER), Workspace(tmp_path / "outputs", PROJECT / "models")
    word = Embedding("xti", word_file(tmp_path / "xti.safetensors", components, "red fox", layered=True))
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "map.png")

    def made(prompt, **groups):
        generate = {"prompt": prompt, "negative_prompt": "a cup", "seed": 3, "steps": 2, "width": 64, "height": 64}
        generate |= groups.pop("generate", {})
        job = build(GenerateJob, {"model": {"base_model": str(STARTER)}, "generate": generate} | groups)
        (request,) = plan_of(job, space).requests
        with loras_attached(components, [], Path, 0) as loras, embeddings_attached(components, [word]) as words:
            return ImageMaker(components, words, loras).make([request], decoded=False).latents[-1]

    for second, groups in (
        (" AND a cup", {}),
        (" AND a cup", {"regions": {"region_map": str(tmp_path / "map.png")}}),
        ("", {"generate": {"guidance": "pag", "negative_scale": 2.0}}),
        ("", {"hires": {"highres_fix_scale": 0.5, "highres_fix_steps": 1}}),
    ):
        layered, plain = made(f"a (xti:1.2){second}", **groups), made(f"a (red fox:1.2){second}", **groups)
        torch.testing.assert_close(layered, plain, rtol=1e-4, atol=1e-4)


# -- files of several words


def several_words(path, components):
    """A file as A1111 or diffusers write it, with the vectors of two known texts under names of their own."""
    fox, cup = (rows_of(components, text)[0] for text in ("red fox", "cup"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        token = {"zunkel": torch.tensor(265), "brabol": torch.tensor(266)}
        parameters = torch.nn.ParameterDict({"zunkel": fox, "brabol": cup})
        torch.save({"string_to_token": token, "string_to_param": parameters, "name": "both", "step": 3}, path)
    else:
        save_file({"<zunkel>": fox.contiguous(), "<brabol>": cup[0].contiguous()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both.pt", "both.safetensors"])
def test_each_word_of_a_file_is_used_by_its_own_name(workspace, name):
    components = family("sd1").load(STARTER)
    path = several_words(workspace.models / "embeddings" / name, components)
    words = find_embeddings(str(path), workspace)
    assert [(word.name, word.token) for word in words] == [("brabol", "brabol"), ("zunkel", "zunkel")]
    assert [list(read_shapes(path, word.token).values()) for word in words] == [[(1, 64)], [(2, 64)]]
    plain = latents(components, encode_prompts(components, "a red fox and a cup"))
    with embeddings_attached(components, words) as new:
        assert torch.equal(latents(components, states_of(new, "a Zunkel and a brabol")), plain)
        assert new.missing("a zunkel") == ["brabol"]
    assert find_embeddings(f"brabol={path}", workspace) == [words[0]]


@pytest.mark.slow(only=("sd2", "sdxl"))
def test_brackets_in_a_name_are_no_weights_escaped_or_not(model, tmp_path):
    names = ("zun (1)", "a[b]", "e\u0301te\u0301")  # the last as macOS writes it
    words = [Embedding(name, word_file(tmp_path / f"{name}.safetensors", model, "red fox")) for name in names]
    with embeddings_attached(model, words) as new:
        plain = new.encode_each(["a red fox, (red fox:1.3)"])[0]
        for prompt in ("a zun (1), (a[b]:1.3)", r"a Zun \(1\), (a\[b\]:1.3)", "a été, (E\u0301te\u0301:1.3)"):
            assert torch.equal(new.encode_each([prompt])[0].context, plain.context)
        assert not new.missing(r"a zun \(1\), a[b], été")


def test_a_file_with_brackets_in_its_name_is_found_by_prompts_that_escape_them(workspace, tmp_path):
    path = workspace.models / "embeddings" / "zun (1).safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.zeros(1, 64)}, path)
    assert [named_embeddings([text], workspace)[0][1] for text in (r"a zun \(1\)", "a zun (1)")] == [path, path]
    accented = path.rename(path.with_stem("e\u0301te\u0301"))
    assert [named_embeddings([text], workspace)[0][1] for text in ("a été", "a e\u0301te\u0301")] == [accented] * 2


def test_a_word_that_a_file_has_not_is_answered_with_those_that_it_has(workspace):
    path = workspace.models / "embeddings" / "both.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"<{name}>": torch.zeros(64) for name in ("zunkel", "brabol")}, path)
    with pytest.raises(ProblemsError) as refused:
        find_embeddings(f"other={path}", workspace)
    assert refused.value.codes == ["embedding.no-such-token"] and "brabol, zunkel" in refused.value.problems[0].what


def test_an_embedding_in_a_lora_file_is_a_word_where_the_lora_is_used(workspace, starter, store):
    (vectors,) = rows_of(starter, "fox")
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"  # changes nothing
    lora = {f"{layer}.lora_down.weight": torch.ones(1, 128), f"{layer}.lora_up.weight": torch.zeros(128, 1)}
    path = workspace.models / "loras" / "ink.safetensors"
    save_lora(path, lora | {"bundle_emb.brabol.string_to_param.*": vectors}, {"ss_base_model_version": "sd_v1"})

    def draw(prompt):
        return run_generate(job_of(prompt=prompt), workspace, store=store)[0]

    with_word = draw("a brabol <lora:ink:1>")
    assert np.array_equal(pixels(with_word), pixels(draw("a fox <lora:ink:1>")))
    assert not np.array_equal(pixels(with_word), pixels(draw("a brabol")))
    job = read_image_metadata(with_word).job
    assert job.generate.embeddings == ["brabol=models/loras/ink.safetensors"]
    assert np.array_equal(pixels(run_generate(job, workspace, store=store)[0]), pixels(with_word))


def test_of_two_embeddings_of_one_name_the_one_that_fits_is_used_and_two_that_fit_are_said(workspace):
    """Collections have the same name in a folder for each family."""
    folder = workspace.models / "embeddings"
    vectors = {"a_sd1": torch.ones(2, 64), "b_sd2": torch.ones(2, 80)}
    for name, rows in vectors.items():
        (folder / name).mkdir(parents=True)
        save_file({"emb_params": rows}, folder / name / "brabol.safetensors")

    def told():
        sources = find_sources(job_of(prompt="a brabol"), workspace)
        return [word.path.parent.name for word in sources.embeddings], [note.code for note in sources.notes]

    assert told() == (["a_sd1"], [])
    (folder / "a_sd1").rename(folder / "c_sd1")
    assert told() == (["c_sd1"], [])
    (folder / "d").mkdir()
    save_file({"emb_params": torch.zeros(2, 64)}, folder / "d" / "brabol.safetensors")
    assert told() == (["c_sd1"], ["embedding.several"])
    for name in ("c_sd1", "d"):
        (folder / name / "brabol.safetensors").unlink()
    assert told() == ([], ["embedding.other-width"])
    note = find_sources(job_of(prompt="a brabol"), workspace).notes[0].what
    assert note.startswith("'brabol' is read as text: brabol.safetensors has vectors of width 80")


def test_a_file_named_as_one_of_its_words_means_all_of_them(workspace):
    components = family("sd1").load(STARTER, parts=("text_encoders", "tokenizers"))
    path = several_words(workspace.models / "embeddings" / "zunkel.pt", components)
    both = [Embedding("brabol", path, "brabol"), Embedding("zunkel", path, "zunkel")]
    assert find_embeddings("zunkel.pt", workspace) == find_embeddings(str(path), workspace) == both
    assert find_embeddings("zunkel=zunkel.pt", workspace) == both[1:]
    for word in both:  # an image's settings name the word again, not the file
        assert find_embeddings(word.setting(workspace), workspace) == [word]


@pytest.mark.slow
def test_an_embedding_is_also_known_by_the_token_that_it_was_trained_for(workspace):
    components = family("sd1").load(STARTER, parts=("text_encoders", "tokenizers"))
    run = word_file(workspace.runs / "r/checkpoints/foxes.safetensors", components, "fox", token="<zunkel>")
    word_file(workspace.models / "embeddings/cups.safetensors", components, "cup", token="brabol")
    assert embedding_vectors(workspace) == {"cups": 1, "brabol": 1}
    store, heard = make_store(), Heard()

    def draw(**asked):
        files = run_generate(job_of(**asked), workspace, store=store, reports=heard)
        return pixels(files[0]), read_image_metadata(files[0]).job.generate.embeddings

    plain = draw(prompt="a fox and a cup")[0]
    names = [portable_name(run, workspace), "models/embeddings/cups.safetensors"]
    for prompt, chosen, said in (
        ("a <zunkel> and a brabol", ["foxes", "cups"], names),
        ("a foxes and a cups", ["foxes", "cups"], names),
        ("a <zunkel> and a brabol", ["foxes"], [names[0], f"brabol={names[1]}"]),
        ("a foxes and a <zunkel>", ["foxes", "<zunkel>=cups"], [names[0], f"<zunkel>={names[1]}"]),
    ):
        image, told = draw(prompt=prompt, embeddings=chosen)
        assert np.array_equal(image, plain) and told == said
    assert not heard.said
    (found,) = find_embeddings("foxes", workspace)
    assert found.names == ("foxes", "<zunkel>") and found.short_setting(workspace) == names[0]
    assert Embedding("<zunkel>", run).short_setting(workspace) == names[0]
    assert Embedding("other", run).short_setting(workspace) == f"other={names[0]}"
    draw(prompt="a fox", embeddings=["foxes"])
    assert "'foxes' or '<zunkel>'" in heard.said[0]


def test_words_of_a_file_in_the_models_folder_are_known_to_prompts(workspace):
    components = family("sd1").load(STARTER, parts=("text_encoders", "tokenizers"))
    path = several_words(workspace.models / "embeddings" / "both.pt", components)
    word_file(workspace.models / "embeddings" / "cup-1.pt", components, "cup")
    assert embedding_vectors(workspace) == {"zunkel": 2, "brabol": 1, "cup-1": 1}
    sources = find_sources(job_of(prompt="a brabol"), workspace)
    assert sources.embeddings == [Embedding("brabol", path, "brabol")]
    chosen = find_sources(job_of(prompt="a cup", embeddings=[str(path)]), workspace)
    assert [word.name for word in chosen.embeddings] == ["brabol", "zunkel"]
    store = make_store()
    files = run_generate(job_of(prompt="a zunkel and a brabol", embeddings=["brabol=both"]), workspace, store=store)
    plain = run_generate(job_of(prompt="a red fox and a cup"), workspace, store=store)
    assert np.array_equal(pixels(files[0]), pixels(plain[0]))
    assert read_image_metadata(files[0]).job.generate.embeddings == [
        "brabol=models/embeddings/both.pt",
        "zunkel=models/embeddings/both.pt",
    ]


def test_a_file_of_vectors_of_several_widths_or_of_weights_is_no_embedding(tmp_path):
    for content in (
        {"a": torch.ones(2, 768), "b": torch.ones(2, 1024)},
        {"norm.weight": torch.ones(768), "norm.bias": torch.ones(768)},
        {str(number): torch.ones(768) for number in range(300)},
    ):
        save_file(content, tmp_path / "x.safetensors")
        assert identify(tmp_path / "x.safetensors").kind == "unknown"
    save_file({"<a>": torch.ones(2, 768), "<b>": torch.ones(768)}, tmp_path / "x.safetensors")
    assert str(identify(tmp_path / "x.safetensors")) == "SD 1.x textual inversion embedding"
