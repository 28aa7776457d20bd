"""Writes and proves packages that every engine reads."""
