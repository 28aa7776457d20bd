"""`polylm serve`: an OpenAI-compatible server.

Only `command` and `vllm_server` can be imported without the extra `serve`.
"""
