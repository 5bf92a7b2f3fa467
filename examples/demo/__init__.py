"""The demo: a small model learns what a robot is. From the folder above: ``python -m demo.demo``."""
