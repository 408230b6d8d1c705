"""Names of other trainers that a config may hold by habit, and the answers to them."""

# Keys of other trainers -> their names here.
FOREIGN_KEYS = {
    "ckpt_every": "save_every",
    "save_interval": "save_every",
    "checkpointing_steps": "save_every",
    "outputs": "run_dir",
    "output_dir": "run_dir",
    "log_interval": "log_every",
    "epochs": "steps",
    "max_train_steps": "steps",
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "adam_eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
    "gradient_accumulation_steps": "micro_batches",
    "accumulation_steps": "micro_batches",
    "gradient_checkpointing": "grad_checkpoint",
    "max_grad_norm": "grad_clip",
    "mixed_precision": "dtype",
    "train_batch_size": "batch_size",
    "resume_from_checkpoint": "run_dir (the same command resumes what it finds there)",
    "resume": "run_dir (the same command resumes what it finds there)",
    "data_path": "dataset.data_path",
    "num_frames": "dataset.num_frames",
    "image_size": "dataset.image_size",
    "frame_interval": "dataset.frame_interval",
    "wandb_project": "wandb",
    "total_limit": "keep_last",
    "checkpoints_total_limit": "keep_last",
    "sequence_parallel_size": "sp_size",
    "enable_sequence_parallelism": "sp_size (above 1 switches it on)",
}

# Names of the field that this version does not offer: key and name -> the reason, and the alternative.
UNSUPPORTED = {
    "plugin gemini": "ColossalAI's Gemini trains wrongly on the CPU, and this version has not been tried with it on "
    "devices, so it offers none; use 'fsdp', or 'zero2' with plugin_config=dict(cpu_offload=True)",
}
