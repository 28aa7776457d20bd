"""Measurements of this package; results and what was learnt from them are in RESULTS.md."""
