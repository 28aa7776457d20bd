"""`polylm bench`: this engine against others on the same device, in the same run."""
