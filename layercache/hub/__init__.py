"""Stores on the Hugging Face Hub: a dataset repository whose files are those of a store."""
