"""Fine-tuning: data sources, records as token ids, the training run, its result."""
