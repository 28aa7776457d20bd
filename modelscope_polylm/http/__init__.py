"""HTTP as `polylm serve` and `polylm web` share it: connections, checks before the application, and an orderly end.

Needs uvicorn and starlette, which the extras `serve` and `web` bring.
"""
