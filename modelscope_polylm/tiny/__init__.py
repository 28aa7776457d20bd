"""The bundled demonstration snapshot: a tiny PolyLM that knows one sentence pattern only."""
