"""`polylm serve`: an OpenAI-compatible server.

Only `command` can be imported without the extra `serve`.
"""
