"""Damage to .bin files that their headers do not show."""

from __future__ import annotations

import zipfile
from pathlib import Path


def flip_byte(file: Path) -> str:
    """Change one byte of the largest record, and return the record's name."""
    with zipfile.ZipFile(file) as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size)
        content = archive.read(record)
    whole = file.read_bytes()
    position = whole.index(content) + len(content) // 2
    file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    return record.filename


def compress(file: Path) -> None:
    """Deflate all records, as a zip program does."""
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
