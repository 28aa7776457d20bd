"""Text to token ids and back: tokenizer, incremental detokenizer, prompt formats."""
