"""Which distribution brings which optimizer, for families that are not installed: a hint for messages, nothing else."""

DISTRIBUTION_OF_OPTIMIZER = {
    "adamw": "ed-train-adamw",
    "adamw8bit": "ed-train-bnb",
    "lion8bit": "ed-train-bnb",
    "paged_adamw8bit": "ed-train-bnb",
    "paged_lion8bit": "ed-train-bnb",
    "lion": "ed-train-lion",
    "dadapt_adam": "ed-train-dadapt",
    "dadapt_adan": "ed-train-dadapt",
    "dadapt_lion": "ed-train-dadapt",
    "dadapt_sgd": "ed-train-dadapt",
    "prodigy": "ed-train-prodigy",
}

DISTRIBUTION_OF_SECTION = {
    "text_encoder_freezing": "ed-train-freezing",
    "unet_freezing": "ed-train-freezing",
}

DEFAULT_OPTIMIZER = "adamw8bit"
