"""Downloads a snapshot with ModelScope's client, which resumes and checks hashes; its listing is not trusted."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from modelscope_polylm.errors import DownloadError, SnapshotError
from modelscope_polylm.files import cache_root

SNAPSHOT_FILE = re.compile(
    r"[A-Za-z0-9][\w.-]*\.(bin|safetensors|json|model|jinja|md|txt)|ms_wrapper\.py|LICENSE|SHA256SUMS", re.ASCII
)
"""Names of the files that snapshots and packages have. No other file is asked for."""
WEIGHT_SUFFIXES = (".bin", ".safetensors")
SMALL_FILE_BYTES = 256 << 20
"""Most bytes of any other file; the tokenizer.json of the published tokenizer has about 20 MB."""
CONNECT_SECONDS = 10
SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
ACCESS_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS)
BAD_LISTING = (ValueError, TypeError, AttributeError, OverflowError)
"""What ModelScope's client raises over a listing whose entries have unexpected types."""
CONTINUES = "Run again: what was downloaded is kept."

Announce = Callable[[str, int], None]
"""Takes the model with its revision, and the bytes of its files, before they are fetched."""


def download(
    model_id: str, revision: str | None = None, partial: Path | None = None, announce: Announce | None = None
) -> Path:
    """Fetch a snapshot into ModelScope's cache, continuing what an interrupted download left in `partial`.

    Args:
        model_id: owner and name on ModelScope.
        revision: tag or branch; the default branch if None.
        partial: an incomplete copy in the cache.
        announce: called before the download begins.

    Raises:
        DownloadError: an unwritable cache, no network, an unknown model or revision, a listing that cannot be trusted,
            a wrong checksum, or no space; says what to do.
        SnapshotError: the model on the hub is no PolyLM snapshot.
    """
    from modelscope import snapshot_download
    from modelscope_hub.errors import HubError

    name = _name(model_id, revision)
    _check_cache()
    files = snapshot_files(model_id, revision)
    _check_space(sum(files.values()), name, partial)
    if announce:
        announce(name, sum(files.values()))
    try:
        # the client asks for the listing again; exact names keep what a second answer adds from being written
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=list(files)))
    except (HubError, OSError, *BAD_LISTING) as error:
        raise explained(error, name) from error


def download_size(model_id: str, revision: str | None = None) -> int:
    """Bytes of all files that `download` fetches. Raises as `snapshot_files`."""
    return sum(snapshot_files(model_id, revision).values())


def snapshot_files(model_id: str, revision: str | None = None) -> dict[str, int]:
    """Name to bytes of the files of a snapshot on the hub.

    Raises:
        DownloadError: the hub cannot be reached or has no such model or revision; or its listing cannot be trusted.
        SnapshotError: the model has no config.json.
    """
    name = _name(model_id, revision)
    _check_reachable(name)
    files = {path: size for path, size in _listing(model_id, revision) if _is_checked(path, size, name)}
    if "config.json" not in files:
        raise SnapshotError(f"{name} on the hub has no config.json, so it is not a PolyLM snapshot.")
    return files


def explained(error: BaseException, name: str) -> DownloadError:
    """The error as a DownloadError that says what to do. `name` is the model with its revision."""
    causes = list(_causes(error))
    reasons = (_disk_reason, _file_reason, _access_reason, _network_reason)
    for reason in reasons:
        text = next((text for cause in causes if (text := reason(cause, name))), None)
        if text:
            return DownloadError(text)
    return DownloadError(f"{name} could not be downloaded: {error}. {CONTINUES}")


def _listing(model_id: str, revision: str | None) -> list[tuple[Any, Any]]:
    """Path and size of every file, as the hub names them."""
    import requests
    from modelscope_hub.errors import HubError, NotExistError

    name = _name(model_id, revision)
    try:
        return [(file["Path"], file["Size"]) for file in _hub(model_id).get_model_files(model_id, revision=revision)]
    except NotExistError as error:
        raise DownloadError(_not_found(model_id, revision)) from error
    except requests.JSONDecodeError as error:  # which is an OSError, too
        raise _unreadable(name, error) from error
    except (HubError, OSError) as error:
        raise explained(error, name) from error
    except BAD_LISTING as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> DownloadError:
    return DownloadError(f"The hub's listing of {name} cannot be read ({error}). {_distrust()}")


def _hub(model_id: str) -> Any:
    from modelscope.hub.api import HubApi

    return HubApi(endpoint=HubApi().get_endpoint_for_read(model_id))


def _name(model_id: str, revision: str | None) -> str:
    return f"{model_id} at {revision}" if revision else model_id


def _check_cache() -> None:
    """Raise DownloadError if nothing can be written to the cache, which the client reports as a slow network."""
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise DownloadError(_unwritable(root, error)) from error


def _check_reachable(name: str) -> None:
    """Raise DownloadError if nothing answers at the hub's address: the client tries for 15 s and tells no cause."""
    import requests

    endpoint = _endpoint()
    try:
        requests.head(endpoint, timeout=CONNECT_SECONDS).close()
    except requests.ConnectionError as error:
        raise DownloadError(
            f"{name} could not be downloaded: {endpoint} cannot be reached: {_innermost(error)}. "
            "Check the network, or give the folder of a copy."
        ) from error
    except requests.RequestException:  # something answers; the client tells what is wrong with it
        return


def _endpoint() -> str:
    from modelscope_hub.config import get_default_config
    from modelscope_hub.constants import DEFAULT_ENDPOINT, DEFAULT_INTL_ENDPOINT, ENV_PREFER_AI_SITE

    endpoint = str(get_default_config().endpoint)
    prefers_ai = os.environ.get(ENV_PREFER_AI_SITE, "").lower() in ("1", "true", "yes", "on")
    return str(DEFAULT_INTL_ENDPOINT) if prefers_ai and endpoint == DEFAULT_ENDPOINT else endpoint


def _is_checked(path: object, size: object, name: str) -> bool:
    """Whether a listed file belongs to a snapshot. Raises DownloadError if the listing cannot be trusted."""
    if not isinstance(path, str) or _leads_outside(path):
        raise DownloadError(
            f"The hub's listing of {name} names {path!r:.80}, which is not a path inside the model. {_distrust()}"
        )
    if not SNAPSHOT_FILE.fullmatch(path):
        return False
    limit = None if path.endswith(WEIGHT_SUFFIXES) else SMALL_FILE_BYTES
    if not isinstance(size, int) or size < 0 or (limit is not None and size > limit):
        raise DownloadError(f"The hub's listing of {name} gives {path} the size {size!r:.80}. {_distrust()}")
    return True


def _leads_outside(path: str) -> bool:
    # on Windows, a backslash separates and a colon follows a drive
    parts = PurePosixPath(path).parts
    return not parts or ".." in parts or path.startswith("/") or any(mark in path for mark in "\\:\0")


def _distrust() -> str:
    return (
        f"Nothing was downloaded: {_endpoint()} is broken or hostile. Use another mirror, or unset MODELSCOPE_ENDPOINT."
    )


def _check_space(size: int, name: str, partial: Path | None) -> None:
    root = cache_root()
    present = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial else 0
    free = shutil.disk_usage(root).free
    if size - present > free:
        needed = f"{(size - present) / 1e9:.3f} GB more on disk, but only {free / 1e9:.3f} GB are free in {root}"
        advice = "Free space, or set MODELSCOPE_CACHE to a folder on a larger disk."
        raise DownloadError(f"{name} needs {needed}. {advice}")


def _not_found(model_id: str, revision: str | None) -> str:
    from modelscope_hub.errors import HubError

    try:
        branches, tags = _hub(model_id).get_model_branches_and_tags(model_id)
    except (HubError, OSError):
        advice = "Check the name; for a private model, log in with `modelscope login`."
        return f"There is no folder {model_id}, and the hub has no public model with this id. {advice}"
    return f"{model_id} has no revision {revision or 'master'}: choose one of {', '.join([*tags, *branches])}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, the errors of the files that it sums up, and their causes."""
    while error is not None:
        yield error
        for failed in getattr(error, "failed_files", {}).values():
            yield from _causes(failed)
        error = error.__cause__


def _disk_reason(cause: BaseException, name: str) -> str | None:
    if not isinstance(cause, OSError):
        return None
    if cause.errno in SPACE_ERRORS:
        advice = "Free space, or set MODELSCOPE_CACHE to a folder on a larger disk"
        return f"The disk with {cache_root()} is full while downloading {name}. {advice}. {CONTINUES}"
    return _unwritable(cause.filename or cache_root(), cause) if cause.errno in ACCESS_ERRORS else None


def _unwritable(path: object, error: OSError) -> str:
    advice = "Set MODELSCOPE_CACHE to a folder that you may write to."
    return f"{path} cannot be written ({error.strerror}). {advice}"


def _file_reason(cause: BaseException, name: str) -> str | None:
    from modelscope_hub.errors import FileIntegrityError

    if not isinstance(cause, FileIntegrityError):
        return None
    advice = f"It was not kept. {CONTINUES} If this repeats, the copy on the hub is bad, or a proxy changes it."
    return f"A file of {name} arrived damaged: {cause.message} {advice}"


def _access_reason(cause: BaseException, name: str) -> str | None:
    from modelscope_hub.errors import AuthenticationError, PermissionDeniedError

    if not isinstance(cause, (AuthenticationError, PermissionDeniedError)):
        return None
    return f"The hub does not give you {name}. Log in with `modelscope login` and run again."


def _network_reason(cause: BaseException, name: str) -> str | None:
    from modelscope_hub.errors import NetworkError, RequestTimeoutError

    if isinstance(cause, RequestTimeoutError):
        advice = "For a slow line, set MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT=86400 (seconds for a file)."
        return f"Downloading {name} took too long: {cause.message}. {CONTINUES} {advice}"
    if isinstance(cause, NetworkError):
        advice = "Check the network, or give the folder of a copy."
        return f"{name} could not be downloaded: {_innermost(cause)}. {CONTINUES} {advice}"
    return None


def _innermost(error: BaseException) -> str:
    """'Connection refused' out of the layers that socket, urllib3, requests and the client write around it."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause).rpartition(": ")[2].rstrip("\"')") or "the connection to the hub failed"
