"""Downloads a snapshot with ModelScope's client, which resumes and checks hashes."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import DownloadError
from modelscope_polylm.files import cache_root


def download_size(model_id: str, revision: str | None = None) -> int:
    """Bytes of all files of a model, from the hub's listing.

    Raises:
        DownloadError: the hub cannot be reached, or has no such model or revision.
    """
    from modelscope_hub.errors import HubError, NotExistError

    try:
        files = _hub(model_id).get_model_files(model_id, revision=revision)
    except NotExistError as error:
        raise DownloadError(_not_found(model_id, revision)) from error
    except (HubError, OSError) as error:
        raise explained(error, _name(model_id, revision)) from error
    return sum(int(file.get("Size") or 0) for file in files)


def download(model_id: str, revision: str | None = None, partial: Path | None = None) -> Path:
    """Fetch a model into ModelScope's cache, continuing what an interrupted download left in `partial`.

    Raises:
        DownloadError: no network, unknown model or revision, a wrong checksum, or no space; says what to do.
    """
    from modelscope import snapshot_download
    from modelscope_hub.errors import HubError

    _check_space(download_size(model_id, revision), model_id, partial)
    try:
        return Path(snapshot_download(model_id, revision=revision))
    except (HubError, OSError) as error:
        raise explained(error, _name(model_id, revision)) from error


def _hub(model_id: str) -> Any:
    from modelscope.hub.api import HubApi

    return HubApi(endpoint=HubApi().get_endpoint_for_read(model_id))


def _name(model_id: str, revision: str | None) -> str:
    return f"{model_id} at {revision}" if revision else model_id


def _check_space(size: int, model_id: str, partial: Path | None) -> None:
    root = cache_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    present = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial else 0
    free = shutil.disk_usage(existing).free
    if size - present > free:
        needed = f"{(size - present) / 1e9:.1f} GB more on disk, but only {free / 1e9:.1f} GB are free in {root}"
        advice = "Free space, or set MODELSCOPE_CACHE to a folder on a larger disk."
        raise DownloadError(f"{model_id} needs {needed}. {advice}")


def _not_found(model_id: str, revision: str | None) -> str:
    from modelscope_hub.errors import HubError

    try:
        branches, tags = _hub(model_id).get_model_branches_and_tags(model_id)
    except (HubError, OSError):
        advice = "Check the name; for a private model, log in with `modelscope login`."
        return f"There is no folder {model_id}, and the hub has no public model with this id. {advice}"
    return f"{model_id} has no revision {revision or 'master'}: choose one of {', '.join([*tags, *branches])}."


SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
RIGHTS_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS)
CONTINUES = "Run again: what was downloaded is kept."


def explained(error: BaseException, name: str) -> DownloadError:
    """The error as a DownloadError that says what to do. `name` is the model with its revision."""
    causes = list(_causes(error))
    reasons = (_disk_reason, _file_reason, _access_reason, _network_reason)
    for reason in reasons:
        text = next((text for cause in causes if (text := reason(cause, name))), None)
        if text:
            return DownloadError(text)
    return DownloadError(f"{name} could not be downloaded: {error}. {CONTINUES}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, those of the single files that it sums up, and what led to them."""
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
    if cause.errno in RIGHTS_ERRORS:
        advice = "Set MODELSCOPE_CACHE to a folder that you may write to."
        return f"{cause.filename or cache_root()} cannot be written ({cause.strerror}). {advice}"
    return None


def _file_reason(cause: BaseException, name: str) -> str | None:
    from modelscope_hub.errors import FileIntegrityError

    if not isinstance(cause, FileIntegrityError):
        return None
    advice = f"It was not kept. {CONTINUES} If it repeats, the copy on the hub or a proxy on the way is bad."
    return f"A file of {name} arrived damaged: {cause.message} {advice}"


def _access_reason(cause: BaseException, name: str) -> str | None:
    from modelscope_hub.errors import AuthenticationError, PermissionDeniedError

    if not isinstance(cause, (AuthenticationError, PermissionDeniedError)):
        return None
    return f"The hub does not give you {name}. Log in with `modelscope login` and run again."


def _network_reason(cause: BaseException, name: str) -> str | None:
    from modelscope_hub.errors import NetworkError, RequestTimeoutError

    if isinstance(cause, RequestTimeoutError):
        advice = "A slow line needs MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT=86400 (seconds for a file)."
        return f"Downloading {name} took too long: {cause.message}. {CONTINUES} {advice}"
    if isinstance(cause, NetworkError):
        advice = "Check the network, or give the folder of a copy."
        return f"{name} could not be downloaded: {_innermost(cause)}. {CONTINUES} {advice}"
    return None


def _innermost(error: BaseException) -> str:
    """'[Errno 111] Connection refused' out of the layers that requests and urllib3 write around it."""
    return str(error).rpartition(": ")[2].rstrip("\"')") or "the connection to the hub failed"
