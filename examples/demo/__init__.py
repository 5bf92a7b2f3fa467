"""The demo: a small model learns eight photos. From the folder above: ``python -m demo.demo``."""
