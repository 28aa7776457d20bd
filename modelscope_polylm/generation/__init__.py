"""From logits to sequences: options, KV cache, sampling, beam search, and the loop that drives them."""
