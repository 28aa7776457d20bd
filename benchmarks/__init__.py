"""Measurements of this package; their figures are in RESULTS.md, finished experiments in HISTORY.md."""
