"""Readers and writers of files: models, images."""
