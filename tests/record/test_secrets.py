"""Keys lie in a file that only their owner reads, and are in nothing else."""

import json
import os
import stat

import pytest

from core.record import secrets
from core.record.events import LogMessage
from core.record.journal import Journal
from tests.refusals import refused


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    monkeypatch.setenv(secrets.FILE_VARIABLE, str(tmp_path / "private" / "keys.json"))
    for names in secrets.NAMES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    return tmp_path / "private" / "keys.json"


def test_a_key_is_kept_found_and_taken_out_again(own_file):
    assert secrets.secret("wandb_api_key") is None
    secrets.store("wandb_api_key", " key-of-wandb ")
    secrets.store("huggingface_token", "hf_of_the_hub")
    assert secrets.secret("wandb_api_key") == "key-of-wandb" and secrets.is_stored("wandb_api_key")
    secrets.store("wandb_api_key", None)
    assert secrets.secret("wandb_api_key") is None and secrets.secret("huggingface_token") == "hf_of_the_hub"
    assert json.loads(own_file.read_text()) == {"huggingface_token": "hf_of_the_hub"}


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights in another way: the file lies in the user's folder")
def test_only_its_owner_reads_the_file(own_file):
    secrets.store("wandb_api_key", "key-of-wandb")
    assert stat.S_IMODE(own_file.stat().st_mode) == 0o600
    assert [path.name for path in own_file.parent.iterdir()] == ["keys.json"]


def test_the_environment_counts_before_the_file(monkeypatch):
    secrets.store("huggingface_token", "hf_of_the_file")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    assert secrets.secret("huggingface_token") == "hf_of_the_environment"


def test_a_damaged_file_is_as_none_and_an_unknown_name_is_refused(own_file):
    own_file.parent.mkdir()
    own_file.write_text("{")
    assert secrets.secret("wandb_api_key") is None
    with pytest.raises(ValueError, match="unknown key"):
        secrets.store("password", "x")


def test_a_place_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(secrets.FILE_VARIABLE, str(tmp_path / "file" / "keys.json"))
    with refused("file.unwritable"):
        secrets.store("wandb_api_key", "key-of-wandb")


def test_a_journal_never_holds_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    secrets.store("wandb_api_key", "key-of-wandb")
    heard = []
    with Journal(tmp_path) as journal:
        journal.listen(heard.append)
        journal.put(LogMessage("error", "login with key-of-wandb or hf_of_the_environment failed", fix="key-of-wandb"))
    text = (tmp_path / "events.jsonl").read_text()
    assert "key-of-wandb" not in text and "hf_of_the_environment" not in text
    assert heard[0]["text"] == "login with *** or *** failed"
