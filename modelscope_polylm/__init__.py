"""PolyLM for ModelScope. Importing this package puts its classes under ModelScope's names of PolyLM.

The import loads neither torch nor ModelScope; the public names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from modelscope_polylm.plugin.registration import register

if TYPE_CHECKING:
    from modelscope_polylm.errors import (
        DependencyError,
        DeviceError,
        DownloadError,
        EndpointError,
        InputError,
        OptionError,
        PolyLMError,
        SnapshotError,
    )
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.plugin.model import PolyLMForChat, PolyLMForTextGeneration, PolyLMForTranslation
    from modelscope_polylm.plugin.pipelines import PolyLMChatPipeline, PolyLMTextGenerationPipeline
    from modelscope_polylm.plugin.preprocessor import PolyLMPreprocessor
    from modelscope_polylm.plugin.translation import PolyLMTranslationPipeline
    from modelscope_polylm.releases import RELEASES
    from modelscope_polylm.text.tokenizer import PolyLMTokenizer

__version__ = "0.1.0"

__all__ = [
    "RELEASES",
    "DependencyError",
    "DeviceError",
    "DownloadError",
    "EndpointError",
    "GenerationOptions",
    "InputError",
    "OptionError",
    "PolyLMChatPipeline",
    "PolyLMError",
    "PolyLMForChat",
    "PolyLMForTextGeneration",
    "PolyLMForTranslation",
    "PolyLMPreprocessor",
    "PolyLMTextGenerationPipeline",
    "PolyLMTokenizer",
    "PolyLMTranslationPipeline",
    "SnapshotError",
    "__version__",
]

_MODULES = {
    "errors": (
        "DependencyError",
        "DeviceError",
        "DownloadError",
        "EndpointError",
        "InputError",
        "OptionError",
        "PolyLMError",
        "SnapshotError",
    ),
    "generation.options": ("GenerationOptions",),
    "plugin.model": ("PolyLMForChat", "PolyLMForTextGeneration", "PolyLMForTranslation"),
    "plugin.pipelines": ("PolyLMChatPipeline", "PolyLMTextGenerationPipeline"),
    "plugin.preprocessor": ("PolyLMPreprocessor",),
    "plugin.translation": ("PolyLMTranslationPipeline",),
    "releases": ("RELEASES",),
    "text.tokenizer": ("PolyLMTokenizer",),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
