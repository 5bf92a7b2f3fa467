"""A small model that draws shapes, made from generated pictures by a run of ed-train. ``python -m demo_model.make``."""
