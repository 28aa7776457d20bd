"""tokenizer.model -> tokenizer.json, and the check that both give the same ids."""
