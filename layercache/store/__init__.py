"""The store: the only package that knows paths, schemas and Parquet."""
