"""Uploads a package to ModelScope's hub with ModelScope's own client."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import OptionError, PolyLMError, SnapshotError
from modelscope_polylm.hub.resolve import HUB_ID
from modelscope_polylm.packaging.files import CHECKSUMS, read_checksums
from modelscope_polylm.packaging.verify import check_hashes

TAG = re.compile(r"[A-Za-z0-9][\w.-]*")
RESERVED_TAGS = ("main", "master")
VISIBILITIES = ("private", "internal", "public")
TOKEN_ADVICE = (
    "set MODELSCOPE_API_TOKEN to a token of yours (https://modelscope.cn/my/myaccesstoken), or `modelscope login`"
)

Progress = Callable[[int, int], None]


def upload_package(
    folder: str | Path,
    model_id: str,
    tag: str | None = None,
    visibility: str = "private",
    message: str = "Upload PolyLM package",
    progress: Progress | None = None,
) -> str:
    """Create a model on the hub, if it does not exist yet, and commit the files of a package to it.

    Only the files that the package's SHA256SUMS lists are sent, after they were compared with it. Large files that the
    hub already has are not sent again. The token is the one of ModelScope's client; no message shows it.

    Args:
        folder: a package that `package_snapshot` wrote.
        model_id: 'owner/name'.
        tag: a name for the resulting revision, such as 'v1.1.0'.
        visibility: of a model that is created: 'private', 'internal' or 'public'.
        message: the commit message.
        progress: called with the bytes that are committed and their total.

    Returns:
        The model's URL.

    Raises:
        OptionError: an impossible id, tag or visibility, or no token.
        SnapshotError: the folder is no package, or it is damaged.
        PolyLMError: the hub refused or could not be reached; says what to do.
    """
    folder = Path(folder).expanduser()
    _check_options(model_id, tag, visibility)
    names = _checked_files(folder)
    from modelscope.hub.api import HubApi
    from modelscope_hub.errors import HubError

    api = HubApi()
    token = _token()
    try:
        if not api.repo_exists(model_id, re_raise=True):
            api.create_repo(model_id, visibility=visibility, license="apache-2.0", exist_ok=True)
        api.upload_folder(
            model_id,
            folder,
            commit_message=message,
            allow_patterns=names,
            use_cache=False,
            disable_tqdm=True,
            progress_callback=_forwarded(progress),
        )
        if tag:
            api.create_model_tag(model_id, tag)
    except (HubError, OSError, ValueError) as error:
        raise PolyLMError(_explained(error, model_id, token)) from None
    return f"{api.endpoint}/models/{model_id}"


def _check_options(model_id: str, tag: str | None, visibility: str) -> None:
    if not HUB_ID.fullmatch(model_id):
        raise OptionError(f"{model_id!r} is no model id: write it as OWNER/NAME, such as my-name/polylm-13b.")
    if tag is not None and (not TAG.fullmatch(tag) or tag.lower() in RESERVED_TAGS):
        raise OptionError(f"tag={tag!r} cannot be a revision: use a name such as v1.1.0.")
    if visibility not in VISIBILITIES:
        raise OptionError(f"visibility={visibility!r} is unknown: choose one of {', '.join(VISIBILITIES)}.")


def _checked_files(folder: Path) -> list[str]:
    if not (folder / CHECKSUMS).is_file():
        raise SnapshotError(f"{folder} has no {CHECKSUMS}, so it is no package: write one with `polylm package`.")
    faults = [finding.meaning for finding in check_hashes(folder, "") if finding.status == "fault"]
    if faults:
        raise SnapshotError(f"{folder} is not uploaded: {' '.join(faults)} Package the snapshot again.")
    return [CHECKSUMS, *read_checksums(folder)]


def _token() -> str:
    from modelscope_hub.config import get_default_config

    token = get_default_config().token
    if not token:
        raise OptionError(f"There is no token for the hub: {TOKEN_ADVICE}.")
    return str(token)


def _forwarded(progress: Progress | None) -> Callable[[dict[str, Any]], None] | None:
    if progress is None:
        return None
    return lambda event: progress(int(event.get("committed_bytes") or 0), int(event.get("total_bytes") or 0))


def _explained(error: Exception, model_id: str, token: str) -> str:
    from modelscope_hub.errors import AuthenticationError, NetworkError, PermissionDeniedError

    reason = str(error).replace(token, "***")
    if isinstance(error, (AuthenticationError, PermissionDeniedError)) or "login" in reason:
        return f"The hub does not let you write {model_id} ({reason}): {TOKEN_ADVICE}."
    if isinstance(error, NetworkError):
        return f"The hub could not be reached ({reason}): check the network and run again; sent files are kept."
    return f"{model_id} could not be uploaded: {reason}. Run again; large files that arrived are not sent again."
