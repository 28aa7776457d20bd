"""The transformers backend: `GPT2LMHeadModel.generate` behind this package's interface."""
