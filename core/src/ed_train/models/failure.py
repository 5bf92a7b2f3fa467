"""What is said of a model that cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ed_train.errors import ConfigError, Problem


def load_error(message: str) -> ConfigError:
    """The error of a model that cannot be loaded."""
    return ConfigError([Problem("", "resume_ckpt", message)])


@contextmanager
def as_load_error(what: str) -> Iterator[None]:
    """Whatever is raised inside becomes the error of a model that cannot be loaded: `what`, and the reason."""
    try:
        yield
    except Exception as error:
        raise load_error(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What a library says, in one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
