"""``ed-compare``: the same run with several optimizers, and one report of how they did."""
