"""Multilingual self-instruct: a model writes tasks for fine-tuning, as for MultiAlpaca (PolyLM's paper, section 4)."""
