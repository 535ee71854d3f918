"""Guess which option an unknown name was meant to be: by other trainers' names for it, then by its
spelling."""

import difflib
from collections.abc import Collection

# Ours, the first that a program has; the names in lightly-train, DINO and DINOv2, MAE, timm,
# open_clip, transformers, Lightning and accelerate.
MEANINGS: list[tuple[str, str]] = [
    ("learning_rate", "lr base_lr blr peak_lr max_lr base_learning_rate"),
    ("min_learning_rate", "min_lr lr_min eta_min end_lr"),
    ("lr_scheduler_type", "scheduler sched lr_scheduler lr_schedule"),
    (
        "per_device_train_batch_size batch_size",
        "b bs batch batch_size batchsize global_batch_size train_batch_size per_gpu_train_batch_size"
        " per_device_batch_size per_device_eval_batch_size eval_batch_size batch_size_per_gpu"
        " micro_batch_size",
    ),
    (
        "gradient_accumulation_steps",
        "accum accum_iter accum_steps accum_freq grad_accum grad_accum_steps accumulate_grad_batches",
    ),
    (
        "num_train_epochs max_steps",
        "epoch epochs num_epochs n_epochs max_epochs train_epochs num_train_epochs",
    ),
    (
        "max_steps",
        "steps num_steps train_steps num_train_steps total_steps max_train_steps iters iterations max_iter "
        "max_iters max_iterations",
    ),
    ("warmup_steps", "warmup warmup_epochs num_warmup_steps warmup_iters warmup_ratio lr_warmup_steps"),
    ("weight_decay", "wd decay"),
    ("max_grad_norm", "clip clip_grad clip_grad_norm grad_clip grad_clip_norm gradient_clip_val"),
    ("adam_beta1", "beta1"),
    ("adam_beta2", "beta2"),
    ("ema_momentum", "ema ema_decay momentum momentum_teacher teacher_momentum"),
    ("num_prototypes", "out_dim prototypes head_n_prototypes"),
    ("drop_path_rate", "drop_path stochastic_depth"),
    ("layerwise_decay", "layer_decay llrd"),
    (
        "dataloader_num_workers",
        "j worker workers num_workers n_workers dataloader_workers loader_workers preprocessing_num_workers",
    ),
    (
        "output_dir",
        "o out output outdir out_dir output_path output_folder save_dir save_path savedir logdir log_dir "
        "logs exp_dir run_dir work_dir",
    ),
    (
        "dataset datasets conversations source",
        "data data_path data_dir data_root dataset dataset_path dataset_name train_data train_dataset"
        " train_dir train_path train images image_dir image_folder imagenet root input",
    ),
    (
        "eval_dataset test_dataset eval_conversations",
        "val val_data val_dir val_dataset validation valid test test_data test_dir test_dataset eval_data "
        "eval_dir eval_path",
    ),
    (
        "bf16",
        "precision amp amp_dtype dtype autocast half fp16 fp32 bf16 float16 bfloat16 mixed_precision use_amp",
    ),
    (
        "report_to",
        "wandb tensorboard tb mlflow logger loggers tracker trackers log_with use_wandb with_tracking",
    ),
    (
        "resume_from_checkpoint",
        "resume resume_from resume_path auto_resume resume_interrupted continue restart",
    ),
    (
        "init_from model encoder encoders checkpoint",
        "pretrained pretrained_weights weights init init_weights initial_checkpoint pretrained_model"
        " model_name_or_path finetune finetune_from load_from ckpt ckpt_path checkpoint checkpoint_path",
    ),
    (
        "backbone model init_from encoder encoders",
        "model models arch architecture model_name model_type model_path vit",
    ),
    ("language_model", "llm lm text_model base_model"),
    (
        "image_size global_crop_size",
        "img_size imgsz input_size resolution image_resolution crop_size global_crops_size",
    ),
    ("local_crop_size", "local_crops_size"),
    ("num_local_crops", "local_crops local_crops_number n_local_crops"),
    ("global_crop_scale", "global_crops_scale"),
    ("local_crop_scale", "local_crops_scale"),
    ("num_channels", "channels in_chans in_channels input_channels"),
    ("image_mean", "mean"),
    ("image_std", "std"),
    ("hidden_size", "dim embed_dim hidden_dim width d_model"),
    ("num_hidden_layers", "depth layers num_layers n_layers"),
    ("num_attention_heads", "heads num_heads n_heads"),
    ("num_register_tokens", "registers num_registers register_tokens reg_tokens"),
    ("layerscale_value", "layerscale layer_scale init_values ls_init_value"),
    (
        "save_steps",
        "save_every save_freq saveckp_freq save_interval save_frequency checkpoint_interval "
        "checkpoint_every ckpt_every",
    ),
    ("save_total_limit", "keep keep_last max_checkpoints checkpoints_total_limit"),
    ("logging_steps", "log_every log_steps log_interval print_freq log_freq log_every_n_steps"),
    (
        "eval_steps",
        "eval_every eval_interval eval_freq val_every val_interval val_freq eval_period_iterations",
    ),
    (
        "activation_checkpointing",
        "grad_checkpointing gradient_checkpointing activation_checkpointing checkpointing recompute",
    ),
    (
        "max_length",
        "model_max_length max_seq_length max_seq_len seq_len seq_length context_length cutoff_len",
    ),
    ("max_train_samples", "max_train_images train_limit limit_train"),
    ("max_test_samples", "max_test_images max_eval_samples test_limit limit_eval"),
    ("max_samples", "limit samples max_images num_samples n_samples"),
    ("lora_rank", "lora lora_r lora_enable use_lora"),
    ("seed", "random_seed manual_seed"),
    ("name", "run_name exp_name experiment experiment_name project"),
    ("knn_k", "k nb_knn neighbors neighbours"),
]
EPOCHS_AS_STEPS = (
    "this program counts steps, max_steps = epochs x images / images of a step, "
    "which are per_device_train_batch_size x gradient_accumulation_steps x processes"
)
WORD_LIKENESS = 0.8
WHOLE_LIKENESS = 0.75
ENOUGH = 0.7
SHORTEST_PREFIX = 3  # letters; shorter ones begin too many words


def cure_for(key: str, options: Collection[str]) -> str:
    """What to do about the unknown option `key` of a program with `options`, in words."""
    meant = nearest_name(key, options)
    if meant is None:
        return "--help lists the options"
    if meant == "max_steps" and "epoch" in key.lower():
        return EPOCHS_AS_STEPS
    return f"did you mean {meant}?"


def nearest_name(key: str, names: Collection[str]) -> str | None:
    """The one of `names` that `key` was meant to be; None where nothing is near enough."""
    key = key.lower().replace("-", "_").strip("_")
    return key if key in names else _same_meaning(key, names) or _alike(key, names)


def _same_meaning(key: str, options: Collection[str]) -> str | None:
    """The option that other trainers call `key`, if the program has it."""
    for ours, theirs in MEANINGS:
        if key in theirs.split():
            meant = next((name for name in ours.split() if name in options), None)
            if meant is not None:
                return meant
    return None


def _alike(key: str, options: Collection[str]) -> str | None:
    """The option that is spelt most like `key`, if one is spelt enough like it."""
    scores = {name: _likeness(key, name) for name in options}
    best = max(scores, key=scores.__getitem__, default=None)
    return best if best is not None and scores[best] >= ENOUGH else None


def _likeness(key: str, name: str) -> float:
    """How alike two names are, from 0 to 1, by all their letters or by their words.

    A word may be abbreviated to its beginning, and `key` may lack words of `name`.
    """
    whole = difflib.SequenceMatcher(None, key, name).ratio()
    words = key.split("_")
    theirs = name.split("_")
    found = 0.0
    for word in words:
        found += max(_word_likeness(word, other) for other in theirs)
    # of two names that have the words, the shorter one is meant
    share = 0.9 + 0.1 * min(len(words) / len(theirs), 1.0)
    by_words = found / len(words) * share
    return max(whole, by_words) if whole >= WHOLE_LIKENESS else by_words


def _word_likeness(word: str, other: str) -> float:
    """1 for the same word, less for a beginning of it and for a misspelt one, 0 for another
    word."""
    if word == other:
        return 1.0
    shorter, longer = sorted((word, other), key=len)
    if len(shorter) >= SHORTEST_PREFIX and longer.startswith(shorter):
        return 0.9
    ratio = difflib.SequenceMatcher(None, word, other).ratio()
    return ratio if ratio >= WORD_LIKENESS and len(shorter) >= SHORTEST_PREFIX else 0.0
