"""What settings of other trainers are called here, for whoever types them from habit; docs/coming-from.md has more."""

from __future__ import annotations

IN_OPTIMIZER_FILE = "in optimizer.json, which optimizer_config names"

BASE = ("optimizer", "betas", "epsilon", "weight_decay")
"""Keys of optimizer.json, given in train.json or as a flag."""

OTHER_NAMES: dict[str, str] = {
    "pretrained_model_name_or_path": "resume_ckpt",
    "base_model_name": "resume_ckpt",
    "train_data_dir": "data_root",
    "output_dir": "logdir",
    "workspace_dir": "logdir",
    "logging_dir": "logdir",
    "output_model_destination": "save_ckpt_dir",
    "output_name": "project_name",
    "random_flip": "flip_p",
    "flip_aug": "flip_p",
    "train_batch_size": "batch_size",
    "num_train_epochs": "max_epochs",
    "max_train_epochs": "max_epochs",
    "epochs": "max_epochs",
    "max_train_steps": "max_steps",
    "gradient_accumulation_steps": "grad_accum",
    "learning_rate": "lr",
    "learning_rate_te": "lr of text_encoder_overrides",
    "text_encoder_lr": "lr of text_encoder_overrides",
    "unet_lr": "lr of base",
    "learning_rate_scheduler": "lr_scheduler",
    "learning_rate_warmup_steps": "lr_warmup_steps",
    "optimizer_type": "optimizer of base",
    "optimizer_args": "keys of base",
    "use_8bit_adam": "optimizer of base: adamw8bit",
    "adam_beta1": "betas of base",
    "adam_beta2": "betas of base",
    "adam_weight_decay": "weight_decay of base",
    "adam_epsilon": "epsilon of base",
    "max_grad_norm": "clip_grad_norm",
    "snr_gamma": "min_snr_gamma",
    "noise_offset": "zero_frequency_noise_ratio",
    "offset_noise_weight": "zero_frequency_noise_ratio",
    "multires_noise_discount": "pyramid_noise_discount",
    "zero_terminal_snr": "enable_zero_terminal_snr",
    "rescale_noise_scheduler_to_zero_terminal_snr": "enable_zero_terminal_snr",
    "min_timestep": "timestep_start",
    "max_timestep": "timestep_end",
    "text_encoder_layer_skip": "clip_skip, one more",
    "loss_weight_strength": "min_snr_gamma",
    "min_noising_strength": "timestep_start, in timesteps",
    "max_noising_strength": "timestep_end, in timesteps",
    "caption_dropout_rate": "cond_dropout",
    "shuffle_caption": "shuffle_tags",
    "keep_tokens": "keep_tags",
    "use_ema": "ema_decay_rate",
    "ema": "ema_decay_rate",
    "ema_decay": "ema_decay_rate",
    "ema_update_step_interval": "ema_update_interval",
    "train_dtype": "mixed_precision",
    "full_bf16": "weights_dtype",
    "fused_backward_pass": "optimizer_in_backward",
    "torch_compile": "compile",
    "report_to": "wandb",
    "log_with": "wandb",
    "validation_prompts": "sample_prompts",
    "sample_definition_file_name": "sample_prompts",
    "validation_epochs": "sample_steps",
    "sample_every_n_steps": "sample_steps",
    "sample_after": "sample_steps",
    "checkpointing_steps": "save_every_n_steps",
    "backup_after": "ckpt_every_n_minutes",
    "save_every": "save_every_n_epochs",
    "checkpoints_total_limit": "keep_last_n_ckpts",
    "save_last_n_epochs": "keep_last_n_ckpts",
    "rolling_backup_count": "keep_last_n_ckpts",
    "resume_from_checkpoint": "resume",
    "continue_last_backup": "resume",
    "save_state": "save_optimizer",
    "save_model_as": "save_single_file",
    "save_precision": "save_full_precision",
    "validation": "validation_config",
}
"""Names to keys of train.json, or to keys of a section of optimizer.json; as docs/coming-from.md has them."""


def name_here(name: str) -> str | None:
    """What a key of another trainer, or one of optimizer.json, is called here; None if nothing is known of it."""
    if name in BASE:
        return f"it stands in base {IN_OPTIMIZER_FILE}"
    if found := OTHER_NAMES.get(name):
        return f"here it is {found}" + (f" {IN_OPTIMIZER_FILE}" if " of " in found else "")
    return None
