"""Token ids to logits: the configuration, the weights and the GPT-2 decoder of PolyLM."""
