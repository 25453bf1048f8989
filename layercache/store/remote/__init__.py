"""Stores in buckets: what `store.mirror` and `store.files` stand on. Only these two and `store.publish` use it."""
