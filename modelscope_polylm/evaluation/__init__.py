"""The paper's tasks: a model's scores by lm-evaluation-harness, and the file that keeps them."""
