"""Trainings of networks whose layers, initialization or kind are chosen."""

import json


def test_a_training_has_these_layers_and_its_file_says_so(at_first_step):
    def look(training):
        return set(training.inputs.method.network.adapters), training.inputs.method.metadata()

    names, metadata = at_first_step(look, network={"layers": ["attn2"], "layer_dims": ["to_k=2"], "rank": 4})
    assert names and all("attn2" in name for name in names)
    assert metadata["ss_network_layers"].startswith(f"{len(names)} of ")
    assert json.loads(metadata["ss_layers"]) == ["attn2"] and json.loads(metadata["ss_layer_dims"]) == ["to_k=2"]
