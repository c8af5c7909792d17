"""The names that other trainers use for keys, and the names here."""

# At the top level: another trainer's key -> the key here ({} is the same word).
ELSEWHERE = {
    **dict.fromkeys(("lr", "learning_rate", "base_lr"), "optimizer.lr"),
    **dict.fromkeys(("momentum", "weight_decay", "betas", "nesterov"), "optimizer.{}"),
    **dict.fromkeys(("batch_size", "eval_batch_size", "root", "download", "augment", "normalize"), "data.{}"),
    **dict.fromkeys(("validation", "train_limit"), "data.{}"),
    **dict.fromkeys(("transforms", "transform", "augmentation", "augmentations"), "data.augment"),
    **dict.fromkeys(("val_split", "validation_split", "val_fraction"), "data.validation"),
    **dict.fromkeys(("dataset", "data_set"), "data"),
    **dict.fromkeys(("data_dir", "data_path", "data_root"), "data.root"),
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "sched"), "schedule"),
    **dict.fromkeys(("warmup_epochs", "lr_warmup_epochs"), "schedule.warmup_epochs"),
    **dict.fromkeys(("criterion", "loss_fn", "loss_function"), "loss"),
    **dict.fromkeys(("label_smoothing", "smoothing"), "loss.label_smoothing"),
    **dict.fromkeys(("class_weights", "class_weight"), "loss.weight"),
    **dict.fromkeys(("net", "network", "arch", "architecture"), "model"),
    **dict.fromkeys(("opt", "optim"), "optimizer"),
    **dict.fromkeys(("amp", "dtype", "fp16", "bf16", "mixed_precision"), "precision (float32, bf16, fp16 or auto)"),
    **dict.fromkeys(("clip_grad", "grad_clip", "gradient_clip_val", "max_grad_norm"), "clip_grad_norm"),
    **dict.fromkeys(("accumulate_grad_batches", "gradient_accumulation_steps", "accum_iter"), "grad_accum_steps"),
    **dict.fromkeys(("mixup", "cutmix"), "{}_alpha"),
    **dict.fromkeys(("ema", "model_ema", "ema_decay"), "model_ema_decay"),
    **dict.fromkeys(("test_time_augmentation", "multi_crop", "ten_crop"), "tta"),
    **dict.fromkeys(("patience", "early_stop"), "early_stopping: {{patience: N}}"),
    **dict.fromkeys(("eval_metric", "save_best", "monitor"), "best_metric"),
    **dict.fromkeys(("save_every", "save_steps", "save_interval"), "checkpoint_every: 500 steps"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("use_deterministic_algorithms", "cudnn_deterministic", "reproducible"), "deterministic"),
    **dict.fromkeys(("torch_compile", "torchcompile", "use_compile"), "compile"),
    **dict.fromkeys(("cuda_graphs", "cudagraph", "cudagraphs", "use_cuda_graph"), "cuda_graph"),
    **dict.fromkeys(("gpu", "gpus", "accelerator", "cuda"), "device"),
    **dict.fromkeys(("output", "output_dir"), "the option --output"),
}
# In a section: another trainer's key -> the key here.
ELSEWHERE_IN = {
    "optimizer": dict.fromkeys(("learning_rate", "base_lr"), "lr"),
    "data": {
        **dict.fromkeys(("batch", "bs"), "batch_size"),
        **dict.fromkeys(("val_split", "validation_split", "val", "val_fraction"), "validation"),
        **dict.fromkeys(("path", "dir", "folder", "data_dir"), "root"),
        **dict.fromkeys(("transforms", "transform", "augmentations"), "augment"),
    },
    "loss": dict.fromkeys(("smoothing",), "label_smoothing") | dict.fromkeys(("class_weights", "weights"), "weight"),
    "schedule": dict.fromkeys(("warmup",), "warmup_epochs"),
}
