"""Every key of train.json: type, default, range, help. Command-line flags, checks and documents come from here.

The keys are EveryDream 2's, so that its users' files work unchanged; `OWN_KEYS` are additions. Keys that the trainer
does not act upon stand in `DEAD`: they are accepted, and say so when they are set to something other than off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ed_train.first_party import DEFAULT_OPTIMIZER
from ed_train.specs import Bounds, Help, NonNegative, Positive, Probability

Count = Annotated[int, Bounds(ge=1)]
Whole = Annotated[int, Bounds(ge=0)]
Timestep = Annotated[int, Bounds(ge=0, le=1000)]
Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


@dataclass(frozen=True)
class Group:
    """The heading in ``--help`` and in the documents under which a key and those after it stand."""

    title: str


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a run, as in train.json. A null in the file means the default."""

    resume_ckpt: Annotated[
        str | None, Group("model"), Help("model to start from: diffusers folder, hub id, or .safetensors/.ckpt file")
    ] = None
    resume: Annotated[str | None, Help("go on with an interrupted run: latest, or one of its checkpoint folders")] = (
        None
    )
    resume_changed: Annotated[
        bool, Help("go on although optimizer, frozen layers or model have changed; what does not fit begins anew")
    ] = False
    model_config: Annotated[
        str | None, Help("diffusers folder with the configuration of a single-file model, to load it without the hub")
    ] = None
    enable_zero_terminal_snr: Annotated[bool, Help("rescale the noise schedule so that it ends in pure noise")] = False
    clip_skip: Annotated[
        int,
        Bounds(ge=0, le=12),
        Help("layer of the text encoder whose output counts, from the end: 2 is the last but one; 0, 1: the last"),
    ] = 0
    attn_type: Annotated[str, Help("attention implementation; sdp, torch's own, is always used")] = "sdp"
    gradient_checkpointing: Annotated[bool, Help("recompute activations in the backward pass: less memory, slower")] = (
        False
    )
    train_sampler: Annotated[Literal["ddpm", "pndm", "ddim"], Help("noise schedule class; all add the same noise")] = (
        "ddpm"
    )

    data_root: Annotated[str, Group("data"), Help("folder of pictures and captions, searched recursively")] = "input"
    resolution: Annotated[int, Bounds(ge=64, le=4096), Help("pixels of a square picture's side; a multiple of 64")] = (
        512
    )
    batch_size: Annotated[Annotated[int, Bounds(ge=1, le=16384)], Help("pictures per step and process")] = 2
    flip_p: Annotated[Probability, Help("probability of mirroring a picture")] = 0.0
    crops_per_image: Annotated[
        Annotated[int, Bounds(ge=1, le=64)], Help("jittered crops kept per picture; one per epoch")
    ] = 1
    cond_dropout: Annotated[Probability, Help("probability of an empty caption")] = 0.04
    shuffle_tags: Annotated[bool, Help("shuffle the comma-separated parts of a caption")] = False
    keep_tags: Annotated[Whole, Help("leading parts that shuffle_tags leaves in place")] = 0
    rated_dataset: Annotated[
        bool, Help("leave pictures out of later epochs, those of low rating rather than others; needs rating in .yaml")
    ] = False
    rated_dataset_target_dropout_percent: Annotated[
        Annotated[float, Bounds(ge=0, le=100)], Help("percent of the pictures that the last epoch of rated_dataset has")
    ] = 50.0
    cache_dir: Annotated[
        str | None, Help("folder of cached latents, token ids and text embeddings; default: LOGDIR/cache")
    ] = None
    cache_max_gb: Annotated[
        Positive | None, Help("remove what was not used for longest from a cache_dir that is larger; null: no limit")
    ] = None
    cache_text_embeddings: Annotated[
        bool,
        Help("run what is frozen of the text encoder once per caption; false: in every step, with the same result"),
    ] = True
    seed: Annotated[
        Annotated[int, Bounds(ge=-1, le=2**32 - 1)],
        Help("seed of everything random; -1: a random one, which is printed"),
    ] = 555

    max_epochs: Annotated[Annotated[int, Bounds(ge=1, le=100_000)], Group("training"), Help("epochs to train")] = 300
    max_steps: Annotated[Count | None, Help("end after this many optimizer steps, if that is earlier")] = None
    grad_accum: Annotated[Count, Help("batches whose gradients are averaged for one optimizer step")] = 1
    disable_unet_training: Annotated[bool, Help("leave the UNet as it is")] = False
    disable_textenc_training: Annotated[bool, Help("leave the text encoder as it is")] = False
    mixed_precision: Annotated[
        Literal["auto", "bf16", "fp16", "no"], Help("autocast; auto: bf16 where the device has it, else fp16 on a GPU")
    ] = "auto"
    disable_amp: Annotated[bool, Help("train in float32; the same as mixed_precision no")] = False
    compile: Annotated[
        bool, Help("run the UNet through torch.compile, which takes minutes at the start; meant for GPUs")
    ] = False
    optimizer_in_backward: Annotated[
        bool, Help("step each parameter as soon as backward has its gradient, and free that: less memory")
    ] = False
    weights_dtype: Annotated[
        Literal["fp32", "bf16"], Help("bf16: weights that train take half the memory; steps are rounded at random")
    ] = "fp32"
    gpuid: Annotated[Whole, Help("index of the GPU to use")] = 0
    load_settings_every_epoch: Annotated[
        bool, Help("read train.json again before every epoch; docs/configuration.md says what may change then")
    ] = False

    optimizer_config: Annotated[
        str | None, Group("optimizer"), Help(f"optimizer.json; without it: {DEFAULT_OPTIMIZER} with its defaults")
    ] = None
    required_plugins: Annotated[
        tuple[str, ...] | None, Help('plugins that must be there, e.g. ["ed-train-lion>=0.1"]; checked first')
    ] = None
    lr: Annotated[Positive | None, Help("learning rate of both components, over the one in optimizer.json")] = None
    lr_scheduler: Annotated[Scheduler | None, Help("where optimizer.json has none; as a flag: over optimizer.json")] = (
        None
    )
    lr_decay_steps: Annotated[int | None, Help("optimizer steps; null or below 1: 1.5 times the run's")] = None
    lr_warmup_steps: Annotated[Whole | None, Help("optimizer steps; null: 2 % of lr_decay_steps")] = None
    clip_grad_norm: Annotated[Positive | None, Help("largest gradient norm of each component; null: no clipping")] = (
        None
    )

    loss_type: Annotated[
        Literal["mse", "huber", "mse_huber"], Group("loss"), Help("mse_huber: huber's share is t/T")
    ] = "mse"
    min_snr_gamma: Annotated[Positive | None, Help("gamma of min-SNR loss weighting; null: off")] = None
    zero_frequency_noise_ratio: Annotated[
        NonNegative, Help("offset noise: share of noise that is constant per channel")
    ] = 0.0
    pyramid_noise_discount: Annotated[
        Annotated[float, Bounds(gt=0, le=1)] | None, Help("discount per level of multi-resolution noise; null: off")
    ] = None
    embedding_perturbation: Annotated[NonNegative, Help("scale of the noise added to text embeddings; 0: off")] = 0.0
    timestep_start: Annotated[Timestep, Help("first timestep of the noise schedule that is trained")] = 0
    timestep_end: Annotated[Timestep, Help("end of the trained timesteps, itself not included")] = 1000

    ema_decay_rate: Annotated[
        Annotated[float, Bounds(ge=0, lt=1)] | None,
        Group("EMA"),
        Help("keep a moving average of the weights; this share of it stays at each update; null: off"),
    ] = None
    ema_strength_target: Annotated[
        Annotated[float, Bounds(gt=0, lt=1)] | None,
        Help("the same, at the rate that leaves this share of the initial weights in the average at the run's end"),
    ] = None
    ema_update_interval: Annotated[Count, Help("optimizer steps between updates of the average")] = 1
    ema_device: Annotated[
        Literal["cpu", "cuda"] | None,
        Help("where the average is kept; null: where the model trains; cpu: saves GPU memory, updates take longer"),
    ] = None
    ema_sample_ema_model: Annotated[
        bool, Help("draw samples from the average; that is so anyway unless ema_sample_nonema_model is set")
    ] = False
    ema_sample_nonema_model: Annotated[
        bool, Help("draw samples from the trained weights; with ema_sample_ema_model: from both")
    ] = False
    ema_resume_model: Annotated[
        str | None, Help("model that the average of a new run begins with; findlast: the project's newest average")
    ] = None

    project_name: Annotated[str, Group("output"), Help("begins the name of the run's folder")] = "myproj"
    run_name: Annotated[str | None, Help("name of the run's folder; default: project and time")] = None
    logdir: Annotated[str, Help("folder of the runs: metrics, samples and, by default, checkpoints")] = "logs"
    save_ckpt_dir: Annotated[str | None, Help("folder of the checkpoints; default: ckpts in the run's folder")] = None
    save_every_n_epochs: Annotated[Count | None, Help("save a checkpoint every so many epochs")] = None
    save_ckpts_from_n_epochs: Annotated[Whole, Help("no save_every_n_epochs before this epoch")] = 0
    save_every_n_steps: Annotated[Count | None, Help("save a checkpoint every so many optimizer steps")] = None
    ckpt_every_n_minutes: Annotated[Positive | None, Help("save a checkpoint every so many minutes")] = None
    save_optimizer: Annotated[
        bool, Help("keep the training state in every checkpoint; without, only the newest has it")
    ] = False
    keep_last_n_ckpts: Annotated[Count | None, Help("remove older checkpoints of the run; null: keep all")] = None
    save_single_file: Annotated[
        bool,
        Help("write one .safetensors file beside each checkpoint, too, for other programs; --export makes one later"),
    ] = False
    save_full_precision: Annotated[
        bool, Help("write single files in float32, not in half precision; checkpoint folders always are")
    ] = False
    no_save_ckpt: Annotated[
        bool, Help("no single file beside checkpoints, even with save_single_file; the folders are saved all the same")
    ] = False
    save_nothing: Annotated[bool, Help("save no checkpoint at all; what was trained is gone when the run ends")] = False
    no_prepend_last: Annotated[bool, Help("do not put last- before the name of the checkpoint at the end")] = False
    sample_prompts: Annotated[str, Help("prompts of the sample pictures: a .txt or .json file")] = "sample_prompts.txt"
    sample_steps: Annotated[Whole, Help("optimizer steps between sample pictures; 0: none")] = 250
    log_step: Annotated[Count, Help("optimizer steps between logged metrics")] = 25
    wandb: Annotated[bool, Help("log to Weights & Biases as well")] = False
    validation_config: Annotated[
        str | None,
        Help("a .json file: compute the loss of pictures that do not train, too; see docs/validation.md; null: off"),
    ] = None
    write_schedule: Annotated[bool, Help("write the plan of every epoch's batches into the run's folder")] = False

    notebook: Annotated[Any, Group("accepted, without effect so far"), Help("")] = None
    plugins: Annotated[Any, Help("")] = None
    amp: Annotated[Any, Help("")] = None
    disable_xformers: Annotated[Any, Help("")] = None
    lowvram: Annotated[Any, Help("")] = None
    scale_lr: Annotated[Any, Help("")] = None
    ed1_mode: Annotated[Any, Help("")] = None
    useadam8bit: Annotated[Any, Help("")] = None
    rated_dataset_target_dropout_rate: Annotated[Any, Help("")] = None


OWN_KEYS = (
    "model_config", "crops_per_image", "cache_dir", "max_steps", "mixed_precision", "required_plugins", "resume",
    "resume_changed", "keep_last_n_ckpts", "save_single_file", "cache_text_embeddings", "cache_max_gb", "compile",
    "optimizer_in_backward", "save_nothing", "weights_dtype", "save_every_n_steps",
)  # fmt: skip
"""Keys that EveryDream 2 does not have."""

DEAD: dict[str, str] = {
    "amp": "use mixed_precision or disable_amp",
    "disable_xformers": "torch's own attention is used",
    "lowvram": "use gradient_checkpointing",
    "scale_lr": "set the lr that you want",
    "ed1_mode": "",
    "useadam8bit": f"optimizer.json says which optimizer trains; without one it is {DEFAULT_OPTIMIZER}",
    "rated_dataset_target_dropout_rate": "the key is rated_dataset_target_dropout_percent now",
    "notebook": "progress bars are those of a terminal, which a notebook shows, too",
    "plugins": "EveryDream 2's training plugins are not run; an optimizer's plugin is found once it is installed",
}
"""Keys of EveryDream 2's files that nothing acts upon, with the reason or what to use instead."""
