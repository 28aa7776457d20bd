"""Converts tokenizer.model to tokenizer.json, and checks that both give the same ids."""
