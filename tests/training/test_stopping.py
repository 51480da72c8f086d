"""Stop and save at awkward moments: nothing that was learnt is lost, nothing is waited for in vain."""

from core.formats import hashes


def stop_when(training, wanted):
    """Cancel the run at the first journal line for which `wanted` holds."""

    def look(line):
        if wanted(line):
            training.token.cancel()

    training.on_line = look


def test_a_stop_saves_also_when_the_model_file_was_never_hashed(train, monkeypatch, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"x" * 100)
    monkeypatch.setattr(
        "core.training.facts.model_hashes",
        lambda path, memo=None, cancel=None: hashes.model_hashes(model, memo, cancel),
    )
    monkeypatch.setattr("core.training.losses.EVENT_SECONDS", 0.0)
    training = train()
    stop_when(training, lambda line: line["kind"] == "steps")
    assert training.start() == "stopped"
    step = max(training.losses())
    assert training.file(f"t-step{step:08d}.safetensors").is_file()
    assert training.lines("backed_up")[-1]["step"] == step
