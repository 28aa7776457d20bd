"""The vLLM backend, where one machine is not enough."""
