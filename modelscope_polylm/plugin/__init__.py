"""The face towards ModelScope: registration, models, preprocessor and pipelines."""
