"""Names of sd-scripts that are no setting here: what takes their place, or why there is nothing to set."""

from __future__ import annotations

_THREADS = "there is nothing to set: images are decoded by threads, which need no starting between epochs"
_TEXT_CACHE = (
    "there is nothing to set: texts are kept as long as their encoder does not train (memory.text_cache_bytes)"
)

ELSEWHERE: dict[str, str] = {
    "config_file": "give the preset's path as the first word: webui.py train PRESET.json",
    "output_config": "presets are saved on the page; each run keeps its settings as job.json",
    "output_dir": "use --outputs; files lie in the run's own folder there. saving.copy_to takes the finished one elsewhere",
    "in_json": "use dataset.sources with metadata_file",
    "dataset_repeats": "use num_repeats of a folder in dataset.sources",
    "dataset_config": "use --dataset-config FILE",
    "debug_dataset": "use webui.py prepare PRESET --debug-dataset EPOCHS",
    "network_module": "a LoRA is trained; other kinds of networks are not built in yet",
    "network_args": "each argument is a setting of its own, such as network.conv_rank or optimizer.loraplus_lr_ratio",
    "wandb_api_key": "keys are no settings: set WANDB_API_KEY, or enter the key on Tools",
    "huggingface_token": "keys are no settings: set HF_TOKEN, or enter the key on Tools",
    "cache_text_encoder_outputs": _TEXT_CACHE,
    "cache_text_encoder_outputs_to_disk": _TEXT_CACHE,
    "max_data_loader_n_workers": _THREADS,
    "persistent_data_loader_workers": _THREADS,
    "skip_cache_check": "there is nothing to set: entries are found by what they were made from, so none can be stale",
    "tokenizer_cache_dir": "there is nothing to set: the tokenizers come with the program",
    "disable_mmap_load_safetensors": "there is nothing to set: model files are read in order, never mapped",
    "cpu_offload_checkpointing": "it never acted on SD or SDXL; memory.gradient_checkpointing saves the memory",
    "no_token_padding": "captions are always filled up, as the models were trained",
    "num_cpu_threads_per_process": "set OMP_NUM_THREADS before the start",
    "ddp_gradient_as_bucket_view": "there is nothing to set: gradients are summed in one exchange an update",
    "ddp_static_graph": "there is nothing to set: gradients are summed in one exchange an update",
}
