"""Translation between PolyLM's 18 languages: texts and documents -> sentences -> the model -> the same, translated."""
