"""Every option of sd-scripts' trainers leads somewhere: to a setting, to an option of the command line, or to a sentence."""

import pytest

from core.cli.options import commands
from core.settings.base import declared
from core.settings.dataset.source import Source
from core.settings.elsewhere import ELSEWHERE
from core.settings.flags import read_flags
from core.settings.job import JOBS, GenerateJob, TrainJob

NAMES = """
adaptive_noise_scale alpha_mask async_upload base_weights base_weights_multiplier block_lr bucket_no_upscale
bucket_reso_steps cache_info cache_latents cache_latents_to_disk cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk caption_dropout_every_n_epochs caption_dropout_rate caption_extension
caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate clip_skip color_aug
cond_emb_dim conditioning_data_dir config_file console_log_file console_log_level console_log_simple
control_net_lllite_models control_net_lr control_net_models control_net_multipliers control_net_preps
control_net_ratios control_net_weights controlnet_model_name_or_path cpu_offload_checkpointing dataset_class
dataset_config dataset_repeats ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout debiased_estimation_loss
debug_dataset deepspeed dim_from_weights disable_mmap_load_safetensors dynamo_backend enable_bucket enable_wildcard
face_crop_aug_range flip_aug fp16_master_weights_and_gradients fp8_base fp8_base_unet full_bf16 full_fp16 full_path
fused_backward_pass fused_optimizer_groups gradient_accumulation_steps gradient_checkpointing guide_image_path
highres_fix_disable_control_net highvram huber_c huber_scale huber_schedule huggingface_path_in_repo
huggingface_repo_id huggingface_repo_type huggingface_repo_visibility huggingface_token in_json init_word initial_epoch
initial_step ip_noise_gamma ip_noise_gamma_random_strength keep_tokens keep_tokens_separator learning_rate
learning_rate_te learning_rate_te1 learning_rate_te2 log_config log_prefix log_tracker_config log_tracker_name log_with
logging_dir loss_type lowram lr_decay_steps lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio
lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss
max_bucket_reso max_data_loader_n_workers max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps
max_validation_steps mem_eff_attn metadata_author metadata_description metadata_license metadata_tags metadata_title
min_bucket_reso min_snr_gamma min_timestep mixed_precision multires_noise_discount multires_noise_iterations
network_alpha network_args network_dim network_dropout network_module network_train_text_encoder_only
network_train_unet_only network_weights no_half_vae no_metadata no_token_padding noise_offset
noise_offset_random_strength num_cpu_threads_per_process num_vectors_per_token offload_optimizer_device
offload_optimizer_nvme_path offload_param_device offload_param_nvme_path optimizer_args optimizer_type output_config
output_dir output_name persistent_data_loader_workers pretrained_model_name_or_path prior_loss_weight random_crop
reg_data_dir resize_interpolation resolution resume resume_from_huggingface sample_at_first sample_every_n_epochs
sample_every_n_steps sample_prompts sample_sampler save_every_n_epochs save_every_n_steps save_last_n_epochs
save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_model_as save_n_epoch_ratio save_precision
save_state save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred scale_weight_norms sdpa
secondary_separator seed shuffle_caption skip_cache_check skip_image_resolution skip_until_initial_step stop_text_encoder_training
text_encoder_lr token_string token_warmup_min token_warmup_step tokenizer_cache_dir torch_compile train_batch_size
train_data_dir train_inpainting train_text_encoder training_comment unet_lr use_8bit_adam use_lion_optimizer use_object_template
use_safetensors use_style_template v2 v_parameterization v_pred_like_loss vae vae_batch_size validate_every_n_epochs
validate_every_n_steps validation_seed validation_split wandb_api_key wandb_run_name weighted_captions weights xformers
zero3_init_flag zero3_save_16bit_model zero_stage zero_terminal_snr
""".split()

SETTINGS = {name for model in JOBS.values() for entry in declared(model) for name in (entry.name, *entry.kohya_names)}
OF_FOLDERS = set(Source.model_fields)
OPTIONS = {name.replace("-", "_") for options in commands().values() for name in options}


def test_each_name_leads_to_a_setting_an_option_or_a_sentence():
    assert set(NAMES) - SETTINGS - OF_FOLDERS - OPTIONS - set(ELSEWHERE) == set()


@pytest.mark.parametrize(
    "name", "W H scale ckpt images_per_prompt network_weights network_mul textual_inversion_embeddings".split()
)
def test_names_of_the_generator_lead_to_a_setting(name):
    known = {entry.path: entry for entry in declared(GenerateJob)}
    (problem,) = read_flags(GenerateJob, [f"--{name}", "1"])[1]
    assert problem.fix.removeprefix("did you mean --").removesuffix("?") in known


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_is_no_setting_is_told_in_a_sentence_and_is_no_setting(name):
    assert name not in {entry.name for entry in declared(TrainJob)}
    (problem,) = read_flags(TrainJob, [f"--{name}", "1"])[1]
    unknown = problem.code == "network.unknown-module"  # of a module "1"
    assert unknown or problem.fix == ELSEWHERE[name] or "did you mean" in problem.fix
