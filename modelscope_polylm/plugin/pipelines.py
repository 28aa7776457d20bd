"""PolyLM as ModelScope pipelines: text-generation and chat."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from modelscope.msdatasets import MsDataset
from modelscope.pipelines.base import Pipeline
from modelscope.pipelines.builder import PIPELINES

from modelscope_polylm.backends.placement import choose_device
from modelscope_polylm.errors import DeviceError, InputError, OptionError, PolyLMError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generator import GenerationResult
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.inputs import Prompt, as_list, is_many
from modelscope_polylm.plugin.model import PolyLMForChat, PolyLMForTextGeneration
from modelscope_polylm.plugin.outputs import Output, chat_output, stream_outputs, text_output
from modelscope_polylm.plugin.preprocessor import PolyLMPreprocessor
from modelscope_polylm.plugin.registration import PIPELINE_TYPE
from modelscope_polylm.text.prompts import SYSTEM_MESSAGES

__all__ = ["PolyLMChatPipeline", "PolyLMTextGenerationPipeline"]

CONFIGURATION = "configuration.json"
Parameters = dict[str, Any]
Stages = tuple[Parameters, Parameters, Parameters]
"""The parameters of `preprocess`, `forward` and `postprocess`."""


class PolyLMPipeline(Pipeline):  # type: ignore[misc]
    """What the pipelines of all tasks have in common: a loaded model."""

    model_class: ClassVar[type[PolyLMForTextGeneration]] = PolyLMForTextGeneration

    def __init__(
        self,
        model: str | Path | PolyLMForTextGeneration,
        *,
        device: str | None = None,
        preprocessor: PolyLMPreprocessor | None = None,
        **options: Any,
    ) -> None:
        """Load a snapshot folder, or take a loaded model.

        Args:
            model: a folder, or a model.
            device: where to load it; see `PolyLMForTextGeneration`.
            preprocessor: another reader of inputs than the snapshot's own.
            options: `torch_dtype`, `backend`, `prompt_format`, ... as in `PolyLMForTextGeneration`.

        Raises:
            SnapshotError: the folder is not a complete snapshot.
            DeviceError: the device does not exist, or a loaded model is on another one.
            OptionError: an unknown option, or one that a loaded model cannot follow.
        """
        options.pop("auto_collate", None)
        if isinstance(model, (str, Path)):
            model = self.model_class(model, device=device, **options)
        else:
            _check_loaded(model, device, options)
        self._generator = model.generator
        reader = preprocessor or PolyLMPreprocessor(reader=model.generator.reader)
        if not isinstance(reader, PolyLMPreprocessor):
            raise InputError(f"preprocessor must be a PolyLMPreprocessor, not {type(reader).__name__}.")
        device_name, config_file = str(model.device), _configuration_file(Path(model.model_dir))
        super().__init__(config_file=config_file, model=model, preprocessor=reader, device=device_name)
        self.trust_remote_code = bool(options.get("trust_remote_code", False))

    def _get_framework(self) -> str:
        return "pytorch"

    def prepare_model(self) -> None:
        """Nothing to do: the backend put the weights in their place when it loaded them."""
        self._model_prepare = True


@PIPELINES.register_module("text-generation", PIPELINE_TYPE, force=True)
class PolyLMTextGenerationPipeline(PolyLMPipeline):
    """Continues texts and answers conversations.

    An input is a text, `{'text': ...}`, `{'messages': [...]}` or a list of messages; a call takes one input, several of
    them in anything that can be iterated over, or an MsDataset. Options of a call are generation options,
    `return_full_text`, `allow_role_markers` and `system_message`: 'refuse', or 'prepend', which puts system messages
    before the user's. Safe to use from several threads, whose calls run together.
    """

    text_is_message: ClassVar[bool] = False

    def __call__(self, input: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Answer one input, a list of inputs, or the rows of an MsDataset.

        Args:
            input: see the class.
            batch_size: most inputs that run together. None leaves it to the backend: the native and the vLLM backend
                run as many as fit, the transformers backend one.
            options: generation options, `return_full_text`, `allow_role_markers`, `system_message`.

        Returns:
            A dict for one input, a list of dicts for a list, an iterator of dicts for an MsDataset.

        Raises:
            InputError: an input that cannot be used. All inputs of a list are checked before any runs, and the message
                says which one it is.
            OptionError: an unknown option or value.
        """
        reading, running, showing = self._sanitize_parameters(**options)
        size = checked_batch_size(batch_size)
        if isinstance(input, MsDataset):
            return self._answer_rows(input, size, reading, running, showing)
        if not is_many(input):
            prompt = self.preprocess(input, **reading)
            return self.postprocess((prompt, self.forward([prompt], **running)[0]), **showing)
        prompts = self.preprocessor.reader.read_all(as_list(input), **reading)
        results = self.forward(prompts, **running, at_once=size) if prompts else []
        return [self.postprocess(pair, **showing) for pair in zip(prompts, results, strict=True)]

    def stream_generate(self, input: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Answer as the tokens come. Each item of a stream is the whole output so far, not only what is new.

        Args:
            input: one input or several, see the class.
            batch_size: most inputs that run together; for several inputs it asks for one stream of all of them.
            options: as in `__call__`.

        Returns:
            For one input a generator of dicts; for a list without `batch_size` a list of such generators; for a list
            with `batch_size` one generator of lists, with None for inputs that nothing is known of yet.

        Raises:
            InputError, OptionError: as in `__call__`, before anything runs.
        """
        reading, running, showing = self._sanitize_parameters(**options)
        size = checked_batch_size(batch_size)

        def show(prompt: Prompt, result: GenerationResult) -> Output:
            return self.postprocess((prompt, result), **showing)

        def stream_one(prompt: Prompt) -> Generator[Output, None, None]:
            stream = stream_outputs(self._generator, [prompt], **running, show=show)
            return (outputs[0] for outputs in stream if outputs[0] is not None)

        if not is_many(input):
            return stream_one(self.preprocess(input, **reading))
        prompts = self.preprocessor.reader.read_all(as_list(input), **reading)
        if size is None:
            return [stream_one(prompt) for prompt in prompts]
        return stream_outputs(self._generator, prompts, **running, show=show, at_once=size)

    def _sanitize_parameters(self, **parameters: Any) -> Stages:
        """The parameters of `preprocess`, `forward` and `postprocess`. Raises OptionError."""
        markers, system_message = bool(_flag(parameters, "allow_role_markers")), _system_message(parameters)
        reading = {"allow_role_markers": markers, "system_message": system_message, "chat": self.text_is_message}
        showing = self._showing_parameters(parameters)
        running = {"options": self._generator.options(parameters)}
        return {**reading, **running}, running, {**showing, **running}

    def _showing_parameters(self, parameters: Parameters) -> Parameters:
        return {"return_full_text": _flag(parameters, "return_full_text")}

    def preprocess(self, inputs: Any, **parameters: Any) -> Prompt:
        """Read one input."""
        prompt: Prompt = self.preprocessor.reader.read(inputs, **parameters)
        return prompt

    def forward(
        self, inputs: list[Prompt], options: GenerationOptions, at_once: int | None = None
    ) -> list[GenerationResult]:
        """Answer prompts, at most `at_once` of them together."""
        return self._generator.reply(inputs, options, at_once)

    def postprocess(self, inputs: tuple[Prompt, GenerationResult], **parameters: Any) -> Output:
        """The output for one prompt and its result."""
        return text_output(*inputs, **parameters)

    def _answer_rows(
        self, rows: Iterable[Any], size: int | None, reading: Parameters, running: Parameters, showing: Parameters
    ) -> Iterator[Output]:
        """Read rows while earlier ones are answered; outputs come in the order of the rows."""
        prompts: deque[Prompt] = deque()

        def read() -> Iterator[tuple[Prompt, GenerationOptions]]:
            for index, row in enumerate(rows):
                prompts.append(self.preprocessor.reader.read_all([row], first=index, **reading)[0])
                yield prompts[-1], running["options"]

        for result in self._generator.reply_each(read(), size):
            prompt = prompts.popleft()
            if isinstance(result, PolyLMError):
                raise result
            yield self.postprocess((prompt, result), **showing)


@PIPELINES.register_module("chat", PIPELINE_TYPE, force=True)
class PolyLMChatPipeline(PolyLMTextGenerationPipeline):
    """Answers conversations: `{'messages': [...]}` -> `{'message': {...}, 'response': str, 'history': [...]}`.

    A plain text is taken as the message of a user. The history returned is the whole conversation with the answer, also
    where the model saw only its last turns because the context is full.
    """

    model_class = PolyLMForChat
    text_is_message = True

    def _showing_parameters(self, parameters: Parameters) -> Parameters:
        return {}

    def postprocess(self, inputs: tuple[Prompt, GenerationResult], **parameters: Any) -> Output:
        """The output for one conversation and its result."""
        return chat_output(*inputs, **parameters)


def _configuration_file(folder: Path) -> str:
    """What the base class reads: the folder's own configuration, or the bundled model's where it has none."""
    own = folder / CONFIGURATION
    return str(own if own.is_file() else TINY_FOLDER / CONFIGURATION)


def checked_batch_size(batch_size: int | None) -> int | None:
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(f"batch_size={batch_size!r} must be a whole number of at least 1.")
    return batch_size


def _system_message(parameters: Parameters) -> str:
    value = parameters.pop("system_message", None)
    if value not in (None, *SYSTEM_MESSAGES):
        raise OptionError(f"system_message={value!r} is not one of {', '.join(map(repr, SYSTEM_MESSAGES))}.")
    return value or "refuse"


def _flag(parameters: Parameters, name: str) -> bool | None:
    value = parameters.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise OptionError(f"{name}={value!r} must be True or False.")
    return value


def _check_loaded(model: Any, device: str | None, options: Mapping[str, Any]) -> None:
    if not isinstance(model, PolyLMForTextGeneration):
        raise InputError(f"model must be a folder or a PolyLM model, not {type(model).__name__}: {model!r:.80}.")
    ignored = ("trust_remote_code",)
    if refused := [name for name, value in options.items() if value is not None and name not in ignored]:
        raise OptionError(f"{', '.join(refused)}: the model is loaded already; give this where it is loaded.")
    if device not in (None, "gpu", "cuda") and choose_device(device) != model.device:
        raise DeviceError(f"device={device!r}: the model is loaded already, on {model.device}; load it on that device.")
