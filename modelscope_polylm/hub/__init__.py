"""Snapshots as files: found in a folder, in ModelScope's cache or on the hub."""
