"""A ModelScope hub on 127.0.0.1: serves snapshot folders to ModelScope's client, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

CREATED = 1691000000


class LocalHub:
    """What the server serves, the faults that it makes, and the requests that it had.

    Attributes:
        repositories: model id to revision to folder.
        cut: file path to the number of bytes after which its body breaks off, once.
        flipped: paths of files whose last byte is served with one bit wrong.
        ranges: whether `Range` is honoured.
        extra: path to contents of files that are listed and served besides those of the folder.
        honest_listings: how many listings come without the extra files first.
        sizes: file path to what the listing gives as its size.
        listing: what is sent in place of the list of files, unless it is None.
        requests: method and path of every request, in order.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, dict[str, Path]] = {}
        self.cut: dict[str, int] = {}
        self.flipped: set[str] = set()
        self.ranges = True
        self.extra: dict[str, bytes] = {}
        self.honest_listings = 0
        self.sizes: dict[str, Any] = {}
        self.listing: Any = None
        self.requests: list[str] = []

    def publish(self, folder: Path, model_id: str, *revisions: str) -> str:
        """Serve a folder as a model under revisions (`master` if none are given) and return the model's id."""
        self.repositories.setdefault(model_id, {}).update(dict.fromkeys(revisions or ("master",), Path(folder)))
        return model_id

    def file_requests(self, path: str) -> list[str]:
        """The requests for the contents of a file."""
        return [request for request in self.requests if f"FilePath={path}" in request]


@contextmanager
def serving() -> Iterator[LocalHub]:
    """Run a hub in a thread of this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.daemon_threads = True
    server.hub = LocalHub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class HubHandler(BaseHTTPRequestHandler):
    """Answers the requests that `snapshot_download` and `pipeline` make."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> LocalHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the requests are in `hub.requests`."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(self.path)}")
        match = re.fullmatch(r"/(openapi|api)/v1/models/([^/]+/[^/]+)(/.*)?", unquote(url.path))
        if match is None or match[2] not in self.hub.repositories:
            return self.send_json({"Code": 10010205001, "Success": False, "Message": "not found", "Data": None}, 404)
        return self.answer_model(match[2], match[1] + (match[3] or ""), dict(parse_qsl(url.query)))

    do_HEAD = do_GET

    def answer_model(self, model_id: str, request: str, query: dict[str, str]) -> None:
        revisions = self.hub.repositories[model_id]
        folder = revisions.get(query.get("Revision", "master"))
        if request == "openapi":
            return self.send_json({"success": True, "data": _openapi_model(model_id)})
        if request == "api":
            return self.send_data(_model(model_id))
        if request == "api/revisions":
            return self.send_data(_revisions(revisions))
        if request == "api/repo/files" and folder:
            return self.send_data({"Files": self.listing(folder)})
        path = query.get("FilePath", "")
        if request == "api/repo" and path in self.hub.extra:
            return self.send_body(self.hub.extra[path], 200, {})
        if request == "api/repo" and folder and path in _files(folder):
            return self.send_file(folder, path)
        return self.send_json({"Code": 10010205001, "Success": False, "Message": "not found", "Data": None}, 404)

    def listing(self, folder: Path) -> Any:
        if self.hub.listing is not None:
            return self.hub.listing
        contents = {path: (folder / path).read_bytes() for path in _files(folder)}
        self.hub.honest_listings -= 1
        if self.hub.honest_listings < 0:
            contents |= self.hub.extra
        entries = [_entry(path, content) for path, content in contents.items()]
        return [{**entry, "Size": self.hub.sizes.get(entry["Path"], entry["Size"])} for entry in entries]

    def send_data(self, data: Any) -> None:
        self.send_json({"Code": 200, "Success": True, "Message": "success", "RequestId": "local", "Data": data})

    def send_json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_body(body, status, {"Content-Type": "application/json"})

    def send_file(self, folder: Path, path: str) -> None:
        body = (folder / path).read_bytes()
        if path in self.hub.flipped:
            body = body[:-1] + bytes([body[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not self.hub.ranges:
            return self.send_body(body, 200, {}, self.hub.cut.pop(path, None))
        first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
        if first > last:
            return self.send_body(b"", 416, {"Content-Range": f"bytes */{len(body)}"})
        return self.send_body(body[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(body)}"})

    def send_body(self, body: bytes, status: int, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {
        "Name": path.rpartition("/")[2],
        "Path": path,
        "Type": "blob",
        "Size": len(content),
        "Sha256": hashlib.sha256(content).hexdigest(),
        "Revision": "c0ffee",
        "CommittedDate": CREATED,
    }


def _model(model_id: str) -> dict[str, Any]:
    owner, name = model_id.split("/")
    return {"Id": 1, "Path": owner, "Owner": owner, "Name": name, "Visibility": 5, "License": "Apache License 2.0"}


def _openapi_model(model_id: str) -> dict[str, Any]:
    owner, name = model_id.split("/")
    return {"id": model_id, "owner": owner, "name": name, "visibility": "public", "tasks": ["text-generation"]}


def _revisions(revisions: dict[str, Path]) -> dict[str, Any]:
    entries = [{"Revision": revision, "CreatedAt": CREATED} for revision in revisions]
    branches = [entry for entry in entries if entry["Revision"] == "master"]
    tags = [entry for entry in entries if entry["Revision"] != "master"]
    return {"RevisionMap": {"Branches": branches, "Tags": tags}}
