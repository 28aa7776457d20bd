"""What all commands share: flags, loading a model, output to a terminal, errors as exit codes."""
