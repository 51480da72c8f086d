"""webui.py import: the report, and the preset that it saves."""

import io
import json
from types import SimpleNamespace

import pytest

from core.cli.main import BAD_INPUT, DONE, main
from core.settings.presets import files as presets

PRESET = {
    "LoRA_type": "Standard",
    "network_dim": 32,
    "lr_warmup": 5,
    "max_grad_norm": 0,
    "wandb_api_key": "0123",
    "max_train_steps": 200,
}


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "fox.json"
    path.write_text(json.dumps(PRESET))
    return str(path)


def test_it_prints_the_report_and_saves_a_preset(preset, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["import", preset, "--save", str(out)]) == DONE
    said = capsys.readouterr()
    assert (
        "network_dim 32 -> network.rank" in said.out
        and "max_grad_norm" in said.out
        and "0123" not in said.out + said.err
    )
    saved = presets.read(out)
    job = presets.apply(saved)
    assert (job.network.rank, job.schedule.lr_warmup_steps, job.model.compatibility) == (32, 0.05, "none")
    assert "lr_warmup" in saved.description and "0123" not in saved.description
    assert main(["import", preset, "--save", str(out), "--as-sd-scripts"]) == DONE
    assert presets.apply(presets.read(out)).model.compatibility == "sd-scripts-0.10"


def test_it_trains_at_once_with_settings_of_the_command_line_on_top(preset, tmp_path, monkeypatch, capsys):
    from core.cli import train

    trained = []
    monkeypatch.setattr(train, "check", lambda job, options, **more: None)
    monkeypatch.setattr(train, "run_job", lambda task, job, title, options: trained.append((task, job, options.preset)))
    more = ["--as-sd-scripts", "--network.alpha", "3", "--outputs", str(tmp_path)]
    main(["import", preset, "--train", *more])
    ((task, job, of_preset),) = trained
    assert (task, job.network.rank, job.network.alpha, of_preset) == ("train", 32, 3, None)
    assert job.model.compatibility == "sd-scripts-0.10" and "network_dim 32" in capsys.readouterr().out
    assert main(["import", preset, "--network.alpha", "3"]) == BAD_INPUT and len(trained) == 1


@pytest.mark.slow
def test_a_training_for_which_something_is_missing_is_refused_after_the_report(preset, tmp_path, capsys):
    assert main(["import", preset, "--train", "--device", "cpu", "--outputs", str(tmp_path)]) == BAD_INPUT
    said = capsys.readouterr()
    assert "network_dim 32" in said.out and "dataset.folder" in said.err and not list(tmp_path.glob("runs/*"))


def test_it_reads_standard_input(monkeypatch, capsys):
    text = "python train_network.py --network_module networks.lora --network_dim 8"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert main(["import", "-"]) == DONE
    assert "network_dim 8 -> network.rank" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["missing.json"], ["--save"], ["a", "b"]])
def test_words_that_cannot_be_are_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["import", *words]) == BAD_INPUT
    assert "fix:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["import", "export"])
def test_what_it_saves_is_not_written_over_what_it_reads_and_home_is_expanded(
    command, preset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source, saved = {"import": ("fox.json", "~/own.json"), "export": ("own.json", "~/own.toml")}[command]
    assert main(["import", preset, "--save", "own.json"]) == DONE
    before = (tmp_path / source).read_bytes()
    assert main([command, f"~/{source}", "--save", source]) == BAD_INPUT
    assert (tmp_path / source).read_bytes() == before and "another name" in capsys.readouterr().err
    assert main([command, source, "--save", saved]) == DONE
    assert (tmp_path / saved[2:]).is_file() and not (tmp_path / "~").exists()


def test_errors_of_a_dataset_config_are_exit_code_2_and_the_saved_preset_is_said_to_lack_it(tmp_path, capsys):
    (tmp_path / "data.toml").write_text("[[datasets]]\nflop = 1\n[[datasets.subsets]]\nimage_dir = 'x'\n")
    path = tmp_path / "run.sh"
    path.write_text("python train_network.py --network_module=networks.lora --dataset_config=data.toml")
    assert main(["import", str(path), "--save", str(tmp_path / "out.json")]) == BAD_INPUT
    said = capsys.readouterr()
    assert "error:" in said.err and "out.json, without what has errors" in said.out
    assert main(["import", str(path), "--train"]) == BAD_INPUT


def test_a_variable_of_an_option_without_a_setting_gives_no_warning(tmp_path, capsys):
    path = tmp_path / "run.sh"
    path.write_text('OUT="$HOME/out"\npython train_network.py --network_dim=8 --output_dir="$OUT" --vae="$OUT/v"')
    assert main(["import", str(path)]) == DONE
    said = capsys.readouterr()
    assert "--vae uses $OUT" in said.err and "--output_dir uses" not in said.err
    assert "output_dir $OUT: use --outputs" in said.out
