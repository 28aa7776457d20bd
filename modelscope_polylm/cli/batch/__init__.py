"""`polylm batch`: a file of inputs in, a file of answers out."""
