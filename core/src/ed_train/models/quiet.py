"""Keep the libraries' chatter off the terminal while models are loaded and drawn with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no warnings of diffusers, transformers and what they import; errors still show."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers.utils import logging as diffusers_logging
            from transformers.utils import logging as transformers_logging

            bars = [
                (library, library.is_progress_bar_enabled()) for library in (diffusers_logging, transformers_logging)
            ]
            for library, _ in bars:
                library.disable_progress_bar()
            try:
                yield
            finally:
                for library, enabled in bars:
                    if enabled:
                        library.enable_progress_bar()
    finally:
        logging.disable(before)
