"""Options of sd-scripts, and of other programs' commands, without a setting here: what replaces them, or why they are not needed."""

_THREADS = "remove it: images are decoded by threads that keep running between epochs"
_TEXT_CACHE = (
    "remove it: outputs of frozen text encoders are always cached, in RAM (memory.text_cache_bytes) and on disk"
)
_VRAM = "leave it out: if VRAM is short, generations offload (generation_memory.offload); a training takes less with memory.gradient_checkpointing"

ELSEWHERE: dict[str, str] = {
    "config_file": "give the preset's path as the first argument: webui.py train PRESET.json",
    "output_config": "save presets on the page; each run saves its settings as job.json",
    "output_dir": "use --outputs for the folder of all runs, and saving.copy_to for a copy of the final file",
    "in_json": "use dataset.sources with metadata_file",
    "dataset_repeats": "use num_repeats of a folder in dataset.sources",
    "dataset_config": "use --dataset-config FILE",
    "debug_dataset": "use webui.py prepare PRESET --debug-dataset EPOCHS",
    "network_module": "use network.kind",
    "network_args": "use the setting for each argument, such as network.conv_rank or optimizer.loraplus_lr_ratio",
    "wandb_api_key": "set WANDB_API_KEY, or enter the key on Tools: keys are not settings",
    "huggingface_token": "set HF_TOKEN, or enter the key on Tools: keys are not settings",
    "cache_text_encoder_outputs": _TEXT_CACHE,
    "cache_text_encoder_outputs_to_disk": _TEXT_CACHE,
    "max_data_loader_n_workers": _THREADS,
    "persistent_data_loader_workers": _THREADS,
    "skip_cache_check": "remove it: cache entries are identified by their inputs and cannot be stale",
    "tokenizer_cache_dir": "remove it: the tokenizers come with the program",
    "disable_mmap_load_safetensors": "remove it: model files are never memory-mapped",
    "cpu_offload_checkpointing": "remove it: it has no effect on SD and SDXL; memory.gradient_checkpointing saves memory",
    "no_token_padding": "remove it: captions are always padded, as the models were trained",
    "train_inpainting": "leave it out: inpainting models are not trained here",
    "svd_lowrank_niter": "leave it out: how a matrix is decomposed follows from its size",
    "num_cpu_threads_per_process": "set OMP_NUM_THREADS in the environment",
    "lowvram": _VRAM,
    "medvram": _VRAM,
    "clip_vision_strength": "leave it out: images are not used as prompts; image_to_image.image_path starts from one",
    "highres_fix_upscaler_args": "leave it out: upscalers take no arguments; hires.highres_fix_upscaler_file chooses the model",
    "ddp_gradient_as_bucket_view": "remove it: gradients are reduced once per step",
    "ddp_static_graph": "remove it: gradients are reduced once per step",
}
