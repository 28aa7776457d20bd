"""Downloads a snapshot with ModelScope's client, which resumes and checks hashes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import DownloadError
from modelscope_polylm.hub.download_errors import cache_root, explained


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
