"""Settings of other programs opened on the page: the form, the report that stays with the preset, and the export, without a browser."""

from __future__ import annotations

import json
import tomllib

import pytest
from work_parts import image, make_page

from core.imports.projects.importers import MAX_BYTES
from core.record.workspace import PROJECT
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from tabs.form.presets import MAX_BYTES as PRESET_BYTES
from tabs.form.project import Project, with_value
from tabs.runs.view import table
from tabs.train import imports
from tabs.train.tab import ACTIONS, _run_action
from tests.refusals import refused

KOHYA = {
    "LoRA_type": "Standard",
    "network_dim": 32,
    "lr_warmup": 5,
    "max_grad_norm": 0,
    "wandb_api_key": "0123456789",
    "max_train_steps": 200,
    "train_data_dir": "/nowhere/images",
    "pretrained_model_name_or_path": "C:\\nowhere\\model.safetensors",
}
COMMAND = "accelerate launch train_network.py --network_module=networks.lora --network_dim={} --output_name={}\n"
RATE = "optimizer.learning_rate"


@pytest.fixture
def page(tmp_path, monkeypatch):
    (tmp_path / "program").mkdir()
    monkeypatch.setattr("tabs.train.imports.PROJECT", tmp_path / "program")  # what lies around the checkout is no one's
    return make_page(tmp_path)


def opened(page, text, file="", **more):
    browser = page.browsers.of("one")
    ACTIONS["file"](page, {"text": text, "file": file, "token": "t", **more}, browser)
    return browser


def rows(page):
    """{key: kind} of the report."""
    return {row["key"]: part["kind"] for part in imports.report(page.project)["parts"] for row in part["rows"]}


@pytest.mark.parametrize(
    ("file", "text", "rank"),
    [
        ("fox.json", json.dumps(KOHYA), 32),
        ("", json.dumps(KOHYA), 32),
        ("", COMMAND.format(8, "fox"), 8),
        ("fox.bat", "set RANK=9\r\n" + COMMAND.format("%RANK%", "fox"), 9),
        ("fox.toml", 'network_module = "networks.lora"\nnetwork_dim = 7\n', 7),
        ("fox.json", json.dumps(dump(with_value(TrainJob(), "network.rank", 5))), 5),
        ("", json.dumps(dump(with_value(TrainJob(), "network.rank", 6))), 6),
    ],
)
def test_any_text_fills_the_form_and_undo_restores_it_with_what_was_wrong(page, file, text, rank):
    page.project.edit(RATE, "fast")
    before = page.project.job
    message = opened(page, text, file).message
    assert page.project.job.network.rank == rank and not page.project.bad
    assert message["kind"] == "done" and message["undo"] == page.project.can_undo
    page.project.undo()
    assert page.project.job == before and list(page.project.bad) == [RATE] and imports.origin(page.project) is None


@pytest.mark.parametrize("text", [json.dumps(KOHYA), json.dumps(dump(with_value(TrainJob(), "network.rank", 32)))])
def test_the_pasted_path_of_a_file_is_read_but_not_on_a_shared_page(page, tmp_path, text):
    file = tmp_path / "fox rank.json"
    file.write_text(text)
    opened(page, f' "{file}"\n')
    assert page.project.job.network.rank == 32
    shared = make_page(tmp_path / "page", shared=True)
    with refused("import.unknown"):
        opened(shared, str(file))
    for gone in (f"{tmp_path}/gone.toml", "C:\\Users\\me\\fox rank.json", "~/no such.yaml"):
        with refused("import.no-file"):
            opened(page, gone)
    with refused("import.unknown"):
        opened(page, "/usr/bin/env fox --config a.toml")


def test_the_report_has_every_key_with_what_became_of_it_and_no_secret(page):
    opened(page, json.dumps(KOHYA), "fox.json")
    found, kinds = imports.report(page.project), rows(page)
    assert KOHYA.keys() <= kinds.keys() and {"max_grad_norm", "lr_warmup"} <= {
        key for key, kind in kinds.items() if kind == "changed"
    }
    assert kinds["wandb_api_key"] == "secret" and kinds["network_dim"] == "taken" and "default" in kinds.values()
    assert "0123456789" not in json.dumps(found) + page.project.file.read_text() + page.project.description
    rank = next(row for part in found["parts"] for row in part["rows"] if row["key"] == "network_dim")
    assert (rank["value"], list(rank["settings"])) == ("32", ["network.rank"])
    missing = {each["field"]: (each["text"], each["looks"]) for each in found["missing"]}
    assert missing == {
        "model.base_model": (KOHYA["pretrained_model_name_or_path"], "model"),
        "dataset.folder": (KOHYA["train_data_dir"], "folder"),
    }
    opened(page, COMMAND.format(8, "fox").strip() + "".join(f" --unknown_{number}=1" for number in range(300)))
    part = next(part for part in imports.report(page.project)["parts"] if part["kind"] == "unavailable")
    assert len(part["rows"]) == imports.MOST_ROWS and part["more"] >= 100


def test_folders_of_concepts_that_are_missing_are_chosen_one_by_one(page, tmp_path):
    """Also what the page and the project's file hold of them is JSON."""
    concepts = [{"path": "E:\\gone\\fox"}, {"path": str(tmp_path)}]
    opened(page, json.dumps({"training_method": "LORA", "__version": 10, "concepts": concepts}), "a.json")
    assert [(each["field"], each["text"]) for each in imports.report(page.project)["missing"]] == [
        ("dataset.sources", "E:\\gone\\fox")
    ]
    json.dumps([imports.report(page.project), imports.origin(page.project)])
    (tmp_path / "fox").mkdir()
    _run_action(
        page,
        "found_folder",
        {"before": "E:\\gone\\fox", "now": str(tmp_path / "fox"), "stamp": page.project.stamp},
        page.browsers.of("one"),
    )
    assert imports.origin(page.project)["folders"] == [str(tmp_path / "fox"), str(tmp_path)]


def test_files_of_the_same_name_are_offered(page):
    opened(page, json.dumps(KOHYA | {"pretrained_model_name_or_path": "C:\\models\\starter"}), "fox.json")
    missing = {each["field"]: each["nearby"] for each in imports.report(page.project)["missing"]}
    assert missing["model.base_model"][0] == str(page.workspace.models / "starter")


def test_a_folder_is_offered_next_to_the_one_that_the_form_had(page, tmp_path):
    for name in ("img", "other"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    page.project.set_values({"dataset.folder": str(tmp_path / "sets/other")}, did="choosing")
    opened(page, json.dumps(KOHYA | {"train_data_dir": "D:\\train\\img"}), "fox.json")
    missing = {each["field"]: each["nearby"] for each in imports.report(page.project)["missing"]}
    assert missing["dataset.folder"] == [str(tmp_path / "sets/img"), str(tmp_path / "sets/other")], "and that one"


def test_the_forms_folder_is_offered_for_the_only_training_folder_alone(page, tmp_path):
    (tmp_path / "mine").mkdir()

    def offered(*kinds: str) -> list[bool]:
        page.project.set_values({"dataset.folder": str(tmp_path / "mine")}, did="choosing")
        concepts = [{"path": f"E:\\gone\\{n}", "type": kind} for n, kind in enumerate(kinds)]
        opened(page, json.dumps({"training_method": "LORA", "__version": 10, "concepts": concepts}), "a.json")
        return [str(tmp_path / "mine") in each["nearby"] for each in imports.report(page.project)["missing"]]

    assert offered("STANDARD") == [True] and offered("STANDARD", "STANDARD") == [False, False]
    assert offered("STANDARD", "PRIOR_PREDICTION") == [True, False]


def test_no_folder_of_the_program_itself_is_offered(page):
    opened(page, json.dumps(KOHYA | {"train_data_dir": "D:\\train\\recorded"}), "fox.json")
    missing = {each["field"]: each["nearby"] for each in imports.report(page.project)["missing"]}
    assert not [path for path in missing["dataset.folder"] if path.startswith(str(PROJECT / "tests"))]


def test_a_folder_that_the_form_had_under_the_same_name_is_offered_once(page, tmp_path):
    folder = tmp_path / "sets/img"
    folder.mkdir(parents=True)
    page.project.set_values({"dataset.folder": f"{folder}/"}, did="choosing")
    opened(page, json.dumps(KOHYA | {"train_data_dir": "D:\\train\\img"}), "fox.json")
    missing = {each["field"]: each["nearby"] for each in imports.report(page.project)["missing"]}
    assert missing["dataset.folder"] == [str(folder)]


def test_what_the_preset_turns_off_is_not_said_to_be_missing_from_it(page):
    opened(page, json.dumps(KOHYA | {"v2": False, "save_state": False}), "fox.json")
    assert {"v2": "taken", "save_state": "changed"}.items() <= rows(page).items()


def test_the_report_is_kept_with_the_preset_and_after_a_restart(page):
    opened(page, json.dumps(KOHYA), "fox.json")
    again = Project(page.project.file, page.presets)
    assert imports.origin(again) == imports.origin(page.project) and imports.report(again)["missing"]
    page.project.edit("network.rank", "12")
    page.project.save("fox")
    assert rows(page)["max_grad_norm"] == "changed"
    page.project.choose("")
    assert imports.origin(page.project) is None
    page.project.choose("user/fox")
    found = imports.report(page.project)
    assert page.project.job.network.rank == 12 and imports.origin(page.project)["token"] == ""
    lines = [row["why"] for part in found["parts"] for row in part["rows"]]
    assert found["title"] == "Imported from kohya_ss, train_network.py" and len(found["parts"]) >= 3
    assert any("max_grad_norm" in line for line in lines) and not any("network_dim" in line for line in lines)
    page.project.save("user/fox", replace=True)
    page.project.choose("user/fox")
    assert imports.report(page.project) == found


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a shopping list", "import.unknown"),
        ("{", "file.not-json"),
        ("x" * (MAX_BYTES + 1), "import.too-long"),
        ("python flux_train_network.py --network_dim 4", "import.other-family"),
        (json.dumps({"datasets": []}), "preset.is-dataset-config"),
        (json.dumps(dump(TrainJob()) | {"task": "generate"}), "settings.unknown-name"),
    ],
)
def test_a_refused_text_changes_nothing(page, text, code):
    revision = page.project.revision
    with refused(code):
        opened(page, text, "notes.json" if text == "{" else "")
    browser = page.browsers.of("one")
    _run_action(page, "file", {"text": text, "token": "mine", "stamp": page.project.stamp}, browser)
    assert browser.opened["token"] == "mine" and code in [each["code"] for each in browser.opened["problems"]]
    assert page.project.revision == revision and browser.message["kind"] == "error"
    assert code in [each["code"] for each in browser.message["problems"]]


def test_the_pages_script_knows_how_long_a_text_may_be(page):
    assert page.script_data()["longest"] == {"preset": PRESET_BYTES, "import": MAX_BYTES}


def test_one_of_two_commands_is_chosen(page):
    text, revision = COMMAND.format(4, "fox") + COMMAND.format(6, "owl"), page.project.revision
    choosing = opened(page, text).opened
    assert choosing["token"] == "t" and len(choosing["choices"]) == 2 and page.project.revision == revision
    assert opened(page, text, choice=choosing["choices"][1]).opened["choices"] == ()
    assert page.project.job.network.rank == 6 and page.project.job.saving.output_name == "owl"
    assert opened(page, "learning_rate = 1e-4\nnetwork_dim = 4").opened["choices"]


def test_a_shared_page_reads_no_file_that_a_text_names(tmp_path):
    config, folder = tmp_path / "more.toml", image(tmp_path / "set" / "1_fox" / "a.png").parents[1]
    config.write_text("network_dim = 64")
    dataset = tmp_path / "dataset.toml"
    dataset.write_text(f"[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '{folder}/1_fox'\n")
    text = f"python train_network.py --network_module=networks.lora --config_file={config} --train_data_dir={folder}"
    ranks, missing, sources = [], [], []
    for shared in (False, True):
        page = make_page(tmp_path / str(shared), shared=shared)
        opened(page, text)
        ranks.append(page.project.job.network.rank)
        missing.append([each["field"] for each in imports.report(page.project)["missing"]])
        opened(page, f"{text} --dataset_config={dataset}")
        sources.append(rows(page)["dataset_config"])
    assert ranks == [64, 4] and missing == [[], ["dataset.folder"]] and sources == ["taken", "unavailable"]


ONETRAINER = {"training_method": "LORA", "__version": 10, "concept_file_name": "training_concepts/Concepts.json"}
SENT = {  # program -> (file with the settings, the others, the one of them that nothing names)
    "OneTrainer": (
        ("train_config.json", ONETRAINER | {"sample_definition_file_name": "C:\\training_samples\\samples.json"}),
        {"concepts.json": [{"path": "/gone/fox"}], "samples.json": [{"prompt": "a fox", "enabled": True}], "owl.json": []},
    ),
    "SimpleTuner": (
        ("config.json", {"model_family": "sdxl", "data_backend_config": "config/backend.json", "user_prompt_library": "library.json"}),
        {"backend.json": [{"id": "a", "type": "local", "instance_data_dir": "/gone/fox"}], "library.json": {"a": "a fox"}, "owl.json": []},
    ),
    "sd-scripts": (
        ("fox.sh", f"{COMMAND.format(4, 'fox').strip()} --dataset_config=sets/data.toml --sample_prompts=fox.txt"),
        {
            "data.toml": "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '/gone/fox'\n",
            "fox.txt": "# prompts\na fox\n",
            "owl.json": [],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("program", SENT)
def test_files_that_settings_name_are_opened_with_them_in_any_order_also_on_a_shared_page(tmp_path, program, shared):
    page = make_page(tmp_path, shared=shared)
    (name, content), others = SENT[program]
    sent = [
        {"file": each, "text": text if isinstance(text, str) else json.dumps(text)}
        for each, text in (others | {name: content}).items()
    ]
    message = opened(page, **sent[0], more=sent[1:]).message
    job = page.project.job
    assert [each.folder for each in job.dataset.all_sources()] == ["/gone/fox"], program
    assert job.samples.sample_prompts[0].startswith("a fox") and not job.samples.sample_prompts_file
    assert [each["where"] for each in message["problems"] if each["code"] == "import.unused-file"] == ["owl.json"]
    assert not {"import.no-concepts", "import.no-folders"} & {
        each["code"] for each in imports.report(page.project)["advice"]
    }
    assert str(page.workspace.private) not in json.dumps([imports.report(page.project), message])
    assert not list(page.workspace.personal_private.glob("import-*")), "they are deleted"


def test_a_second_config_and_an_image_among_the_files_are_not_asked_to_be_renamed(page):
    sent = {"owl.json": ONETRAINER, "old.json": [], "more.json": []}
    more = [{"file": name, "text": json.dumps(content)} for name, content in sent.items()]
    more += [
        {"file": "a.png", "text": "\ufffdPNG\r\n\x1a\n\0\0\0\rIHDR"},
        {"file": "own.json", "text": '{"schema_version": 4}'},
    ]
    problems = opened(page, json.dumps(ONETRAINER), "train_config.json", more=more).message["problems"]
    fixes = {each["where"]: each["fix"].partition(" ")[0] for each in problems if each["code"] == "import.unused-file"}
    assert fixes == {"owl.json, own.json": "open", "old.json, more.json": "rename", "a.png": "leave"}


@pytest.mark.parametrize(("absent", "fix"), [("", ""), ("--sample_prompts=fox.txt", "rename each as")])
def test_a_file_that_is_not_used_is_renamed_only_if_a_named_one_is_missing(page, absent, fix):
    text = f"{COMMAND.format(4, 'fox').strip()} --dataset_config=data.toml {absent}"
    more = [
        {"file": "data.toml", "text": SENT["sd-scripts"][1]["data.toml"]},
        {"file": "notes.txt", "text": "ideas for later"},
    ]
    problems = opened(page, text, "fox.sh", more=more).message["problems"]
    (unused,) = (each for each in problems if each["code"] == "import.unused-file")
    assert unused["where"] == "notes.txt" and unused["fix"].startswith(fix) and bool(unused["fix"]) == bool(fix)


def test_a_dataset_config_that_the_settings_do_not_name_has_a_place_of_its_own(page):
    more = [{"file": "data.toml", "text": SENT["sd-scripts"][1]["data.toml"]}]
    (unused,) = opened(page, json.dumps(KOHYA), "fox.json", more=more).message["problems"]
    assert (unused["code"], unused["where"]) == ("import.unused-file", "data.toml") and "Dataset" in unused["fix"]


def test_what_is_wrong_in_a_sent_file_names_it_and_a_missing_one_is_asked_for_by_name(page):
    (name, content), _ = SENT["sd-scripts"]
    opened(
        page,
        content,
        name,
        more=[{"file": "data.toml", "text": "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 4\n"}],
    )
    advice = imports.report(page.project)["advice"]
    assert any(each["where"].startswith("data.toml, line 4") for each in advice), advice
    opened(page, json.dumps(ONETRAINER), "train_config.json")
    fix = next(each["fix"] for each in imports.report(page.project)["advice"] if each["code"] == "import.no-concepts")
    assert fix.startswith('drop "Concepts.json" on Train together with')
    with refused("import.too-many-files"):
        opened(page, "{}", more=[{"file": f"{n}.json", "text": ""} for n in range(imports.MOST_FILES)])
    with refused("import.same-name"):
        opened(page, "{}", "config.json", more=[{"file": "config.json", "text": "{}"}])


def test_a_sent_dataset_config_leads_to_no_other_file(tmp_path):
    """Its paths are those of another machine, and a shared page reads none."""
    metadata = tmp_path / "meta.json"
    metadata.write_text(json.dumps({"a": {"train_resolution": [640, 640]}}))
    page = make_page(tmp_path / "page", shared=True)

    def codes(resolution: str, subset: str) -> set[str]:
        text = f"[[datasets]]\n{resolution}\n[[datasets.subsets]]\n{subset}\n"
        opened(page, SENT["sd-scripts"][0][1], "fox.sh", more=[{"file": "data.toml", "text": text}])
        return {each["code"] for each in imports.report(page.project)["advice"]}

    assert "dataset-config.no-resolution" in codes("", f"metadata_file = '{metadata}'\nimage_dir = 'a'")
    assert "dataset-config.no-resolution" not in codes("resolution = 512", "image_dir = '../../..'")
    assert page.project.job.dataset.sources[0].folder == "../../.."


def test_the_form_is_exported_with_what_sd_scripts_cannot_express(page, tmp_path):
    folder = image(tmp_path / "set" / "a.png", caption="a fox").parent
    opened(page, COMMAND.format(8, "fox") + f" --train_data_dir={folder}")
    page.project.set_values({"dataset.folder": str(folder), "network.rank": 12}, did="a test")
    found = imports.export_texts(page)
    assert "--network_dim=12" in found["command"] and found["name"] == "fox"
    assert tomllib.loads(found["toml"])["network_dim"] == 12
    assert tomllib.loads(found["dataset"])["datasets"]
    preset = imports.export_texts(page, "kohya_ss")
    assert json.loads(preset["preset"])["network_dim"] == 12 and preset["tab"] == "LoRA"
    named = {found["command"].rpartition("--dataset_config=")[2], tomllib.loads(found["toml"])["dataset_config"]}
    named |= {json.loads(preset["preset"])["dataset_config"]}
    assert named == {"fox_dataset.toml"} and "train_data_dir" not in found["command"], "as the page's download is named"
    page.project.set_values({"network.rs_lora": True}, did="a test")
    lost = {each["field"]: (each["here"], each["there"]) for each in imports.export_texts(page)["lost"]}
    assert lost["network.rs_lora"] == ("on", "off"), "as the form shows them"
    page.project.edit(RATE, "fast")
    with refused("settings.bad-value"):
        imports.export_texts(page)


def test_runs_offers_the_import_with_and_without_runs():
    assert 'data-do="import"' in table([], "all", "", 0, None)


def test_the_export_of_the_page_has_the_prediction_type_of_sd_2_at_768_pixels(page):
    opened(page, COMMAND.format(8, "fox"))
    model, found = {"model.base_model": "gone.safetensors", "model.family": "sd2", "model.prediction": "auto"}, []
    for resolution in (768, 512):
        page.project.set_values(model | {"dataset.resolution": resolution}, did="a test")
        exported = imports.export_texts(page)
        codes = [problem["code"] for problem in exported["advice"]]
        found.append(("--v_parameterization" in exported["command"], "export.prediction" in codes))
    assert found == [(True, False), (False, True)]
