"""What is said of a model that cannot be loaded."""

from __future__ import annotations

from ed_train.errors import ConfigError, Problem


def load_error(message: str) -> ConfigError:
    """The error of a model that cannot be loaded."""
    return ConfigError([Problem("", "resume_ckpt", message)])


def one_line(error: BaseException) -> str:
    """What a library says, in one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
