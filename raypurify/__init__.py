"""raypurify: train, attack and run image purifiers, on a laptop or a Ray cluster."""

__version__ = "0.1.0"
