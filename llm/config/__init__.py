"""Run configuration: its schema, loading, help text and the recipes."""
