"""From the name of a model to its folder: a path, a release's short name or a hub id; the cache first, then the hub."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from modelscope_polylm.errors import DownloadError, SnapshotError, nearest_name
from modelscope_polylm.hub.download import Announce, download
from modelscope_polylm.network.weights import WeightFiles
from modelscope_polylm.releases import RELEASES, named_release

logger = logging.getLogger(__name__)

TINY_FOLDER = Path(__file__).parents[1] / "tiny"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve(
    model: str | os.PathLike[str],
    revision: str | None = None,
    local_files_only: bool = False,
    announce: Announce | None = None,
) -> Path:
    """Find the folder of a model, downloading it from ModelScope's hub if it is not in the cache yet.

    A complete copy in the cache is returned at once, without any request. An interrupted download is continued. The
    cache is ModelScope's own: `$MODELSCOPE_CACHE`, by default ~/.cache/modelscope.

    Args:
        model: a folder, a short name in `releases.RELEASES` ('tiny' is bundled), an id on ModelScope, or a release's id
            on Hugging Face, which is then fetched from ModelScope. A folder with a config.json wins over an id; write
            ./damo/... to mean only a folder.
        revision: tag or branch on the hub; the release's if None, otherwise the default branch.
        local_files_only: never use the network.
        announce: called with the name and the bytes of a model before it is downloaded.

    Returns:
        The folder. A relative one that could be a hub id is made absolute: ModelScope asks the hub for such a path.

    Raises:
        SnapshotError: `model` is neither a folder, nor a release, nor a possible hub id; or no PolyLM snapshot.
        DownloadError: the model is neither cached nor can it be downloaded; says what to do.
    """
    if not isinstance(model, (str, os.PathLike)) or not os.fspath(model):
        raise SnapshotError(_unknown(repr(model)))
    name = str(model)
    folder = Path(name).expanduser()
    release = named_release(name)
    if folder.is_dir() and (release is None or (folder / "config.json").is_file()):
        return folder.absolute() if HUB_ID.fullmatch(name) else folder
    if release is RELEASES["tiny"]:
        return TINY_FOLDER
    if release is None and not HUB_ID.fullmatch(name):
        raise SnapshotError(_unknown(repr(name)))
    model_id = release.model_id if release else name
    wanted = revision or (release.revision if release else None)
    copy = _cached(model_id, wanted)
    if copy and not missing_files(copy):
        return copy
    # If the caller named no revision, a complete copy of another one is better than a download.
    other = None if revision else _cached(model_id, None)
    if other and other != copy and not missing_files(other):
        return other
    if local_files_only:
        raise DownloadError(_not_cached(model_id, wanted, copy))
    if folder.is_dir():
        logger.warning("The folder %s has no config.json, so the hub is asked: write ./%s for the folder.", name, name)
    return download(model_id, wanted, copy, announce)


def missing_files(folder: Path) -> list[str]:
    """What a downloaded folder still lacks, a line each; empty if the download is complete."""
    names = [name for name in ("config.json", "tokenizer.model") if not (folder / name).is_file()]
    # The hub's client renames a file only after it has checked its hash.
    unfinished = [str(path.relative_to(folder)) for path in folder.rglob("*.incomplete")]
    return [*(f"{name} is missing" for name in names), *unfinished, *WeightFiles(folder).file_problems()]


def _cached(model_id: str, revision: str | None) -> Path | None:
    from modelscope import snapshot_download
    from modelscope_hub.errors import CacheNotFound

    try:
        return Path(snapshot_download(model_id, revision=revision, local_files_only=True))
    except CacheNotFound:
        return None


def _unknown(name: str) -> str:
    nearest = nearest_name(name.strip("'"), RELEASES)
    hint = f" Did you mean {nearest}?" if nearest else ""
    return (
        f"{name} is no folder, no release ({', '.join(RELEASES)}) and no hub id (owner/name).{hint} "
        "Check the path, or name a model such as assistant-13b or damo/nlp_polylm_assistant_13b_text_generation."
    )


def _not_cached(model_id: str, revision: str | None, partial: Path | None) -> str:
    state = f"{model_id} at {revision or 'its default revision'} is not in the cache"
    if partial:
        state = f"the copy of {model_id} in {partial} is incomplete ({'; '.join(missing_files(partial)[:3])})"
    return f"Nothing may be downloaded, and {state}. Download it first: modelscope download --model {model_id}" + (
        f" --revision {revision}." if revision else "."
    )
