"""`polylm web`: the demonstration page."""
