"""Keys on the page: written once, never sent back, refused on a shared page."""

from __future__ import annotations

import json
import os
import stat

import pytest
from work_parts import make_page

from core.record import secrets
from core.record.problems import ProblemsError
from tabs.server.browsers import Browser
from tabs.tools import keys

KEY = "hf_" + "q" * 30


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv("ATELIER_KEYS", str(tmp_path / "own" / "keys.json"))
    for variables in secrets.NAMES.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    return make_page(tmp_path)


def test_a_key_is_kept_for_this_person_alone_and_forgotten_again(page, tmp_path):
    browser = Browser("")
    keys.keep(page, {"key": "huggingface_token", "value": f" {KEY}\n"}, browser)
    assert secrets.secret("huggingface_token") == KEY
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "own" / "keys.json").stat().st_mode) == 0o600
    assert keys.states()["huggingface_token"] == {"words": "Kept.", "stored": True}
    keys.keep(page, {"key": "huggingface_token", "value": ""}, browser)
    assert secrets.secret("huggingface_token") is None
    assert keys.states()["huggingface_token"]["words"] == "Not set."


def test_no_message_and_no_markup_holds_a_key(page):
    browser = Browser("")
    keys.keep(page, {"key": "wandb_api_key", "value": KEY}, browser)
    with pytest.raises(ProblemsError) as refused:
        keys.keep(page, {"key": "wandb_api_key", "value": f"{KEY} {KEY}"}, browser)
    everything = json.dumps([browser.message, keys.states(), keys.card(False), str(refused.value)])
    assert KEY not in everything


def test_a_shared_page_has_no_field_and_takes_no_key(page):
    page.shared = True
    assert "<input" not in keys.card(True)
    with pytest.raises(ProblemsError) as refused:
        keys.keep(page, {"key": "wandb_api_key", "value": KEY}, Browser(""))
    assert refused.value.codes == ["keys.shared-page"]
    assert secrets.secret("wandb_api_key") is None


@pytest.mark.parametrize("name", ["", "path", "HF_TOKEN"])
def test_a_made_up_name_is_refused(page, name):
    with pytest.raises(ProblemsError):
        keys.keep(page, {"key": name, "value": KEY}, Browser(""))


def test_the_environment_is_named_where_it_decides(page, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert keys.states()["wandb_api_key"]["words"].startswith("Set by WANDB_API_KEY")
