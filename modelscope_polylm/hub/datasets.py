"""Data sets from ModelScope's hub, a row at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from modelscope_polylm.errors import DownloadError


def hub_rows(dataset_id: str, languages: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Fetch a data set and yield language and row.

    Args:
        dataset_id: owner and name on ModelScope.
        languages: names of its subsets, where each is one language; otherwise the language is "".

    Raises:
        DownloadError: the hub cannot be reached, or has no such data set.
    """
    from modelscope.msdatasets import MsDataset

    for language in languages or ("",):
        subset = {"subset_name": language} if language else {}
        try:
            rows = MsDataset.load(dataset_id, split="train", **subset)
        except Exception as error:  # the client and `datasets` have many kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DownloadError(
                f"{dataset_id} cannot be fetched from ModelScope ({reason}): check the connection, or give its files."
            ) from error
        for row in rows:
            yield language, row
