"""`polylm translate`: texts and documents, translated."""
