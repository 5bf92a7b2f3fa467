"""``python -m ed_train.compare``, the same as ``ed-compare``."""

from ed_train.compare.cli import entry_point

entry_point()
