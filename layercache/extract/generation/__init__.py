"""Text from every layer: one sweep over all exits, its check, and the slow way it is held against."""
