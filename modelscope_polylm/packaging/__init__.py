"""Writes packages that every engine can read, and verifies snapshots."""
