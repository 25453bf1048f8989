"""layercache: run a language model once, keep what every layer said, ask about layers with SQL."""

__version__ = "0.1.0"
