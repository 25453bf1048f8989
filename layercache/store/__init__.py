"""The store: the only package that knows paths, schemas and Parquet.

`reader.open` reads one; `writer.open_run` and `writer.Shard` write one; `verify.verify` checks one.
The format is described in `store/FORMAT.md`.
"""
