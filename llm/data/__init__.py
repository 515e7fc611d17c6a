"""Prompts and responses of a dataset: file formats, chat templates and tokens."""
