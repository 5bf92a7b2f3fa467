"""``python -m ed_train``, and what ``accelerate launch -m ed_train`` runs."""

from ed_train.cli import entry_point

entry_point()
