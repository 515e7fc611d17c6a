"""What is kept on disk: atomic files, the run directory, chunks of work, provenance."""
