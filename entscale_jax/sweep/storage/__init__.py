"""A run's files: in a folder, at s3:// or at gs://, with the lease of their one writer."""
