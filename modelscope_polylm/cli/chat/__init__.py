"""`polylm chat`: a conversation in the terminal."""
