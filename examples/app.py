"""The web app as a ModelScope Studio, and on any machine.

    python examples/app.py
    POLYLM_MODEL=assistant-13b python examples/app.py

A Studio (SDK: Gradio) needs this file, requirements.txt, and the folder modelscope_polylm, all at the top of its
repository. The bundled demonstration model runs on a Studio without a GPU.
"""

import os

from modelscope_polylm.web.command import web

if __name__ == "__main__":
    in_studio = os.environ.get("MODELSCOPE_ENVIRONMENT") == "studio"
    web(
        model=os.environ.get("POLYLM_MODEL", "tiny"),
        host="0.0.0.0" if in_studio else "127.0.0.1",  # a Studio is reached from outside its container
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    )
