"""A local hub that also takes uploads: create, large files, commit, tag."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.local_hub import HubHandler, LocalHub


class WritableHub(LocalHub):
    """A hub whose repositories are folders below `storage`.

    Attributes:
        blobs: large files by their sha256.
        created: what each repository was created with.
        token: the only token that may write.
        authorizations: the Authorization header of every writing request.
    """

    def __init__(self, url: str, storage: Path, token: str) -> None:
        super().__init__(url)
        self.storage, self.token = storage, token
        self.blobs: dict[str, bytes] = {}
        self.created: dict[str, dict[str, Any]] = {}
        self.authorizations: list[str] = []

    def create(self, request: dict[str, Any]) -> str:
        """Make an empty repository."""
        model_id = f"{request['Path']}/{request['Name']}"
        self.created[model_id] = request
        folder = self.storage / model_id.replace("/", "--") / "master"
        folder.mkdir(parents=True)
        return self.publish(folder, model_id)

    def commit(self, model_id: str, actions: list[dict[str, Any]]) -> None:
        """Put files into the master branch."""
        folder = self.repositories[model_id]["master"]
        for action in actions:
            is_large = action["type"] == "lfs"
            content = self.blobs[action["sha256"]] if is_large else base64.b64decode(action.get("content") or "")
            (folder / action["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / action["path"]).write_bytes(content)

    def tag(self, model_id: str, name: str) -> None:
        """Keep the master branch as it is under a name."""
        master = self.repositories[model_id]["master"]
        self.publish(shutil.copytree(master, master.parent / name), model_id, name)


class WritableHandler(HubHandler):
    """Answers the writing requests of ModelScope's client."""

    @property
    def hub(self) -> WritableHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.authorizations.append(self.headers.get("Authorization", ""))
        if self.hub.token not in self.headers.get("Authorization", "") and not path.startswith("/blob/"):
            return self.send_json({"Code": 401, "Success": False, "Message": "not logged in"}, 401)
        if path.startswith("/blob/"):
            self.hub.blobs[path.removeprefix("/blob/")] = body
            return self.send_data({})
        return self.answer_write(path, json.loads(body or b"{}"))

    do_PUT = do_POST

    def answer_write(self, path: str, request: dict[str, Any]) -> None:
        if path == "/api/v1/models" and f"{request['Path']}/{request['Name']}" in self.hub.repositories:
            return self.send_json({"Code": 400, "Success": False, "Message": "model already exists"}, 400)
        if path == "/api/v1/models":
            return self.send_data({"Id": 1, "Name": self.hub.create(request)})
        match = re.fullmatch(r"/api/v1/(?:repos/)?models/([^/]+/[^/]+)/(.+)", path)
        if match is None or match[1] not in self.hub.repositories:
            return self.send_json({"Code": 404, "Success": False, "Message": "not found"}, 404)
        model_id, action = match.groups()
        if action == "info/lfs/objects/batch":
            return self.send_data({"objects": [self.upload_place(blob) for blob in request["objects"]]})
        if action.startswith("commit/"):
            self.hub.commit(model_id, request["actions"])
            return self.send_data({"CommitId": "c0ffee", "Oid": "c0ffee"})
        if action == "repo/tag":
            self.hub.tag(model_id, request["TagName"])
            return self.send_data({})
        return self.send_json({"Code": 404, "Success": False, "Message": "not found"}, 404)

    def upload_place(self, blob: dict[str, Any]) -> dict[str, Any]:
        place = {"upload": {"href": f"{self.hub.url}/blob/{blob['oid']}"}}
        return {**blob, "actions": {} if blob["oid"] in self.hub.blobs else place}


@contextmanager
def serving_writable(storage: Path, token: str) -> Iterator[WritableHub]:
    """Run a writable hub in a thread of this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), WritableHandler)
    server.daemon_threads = True
    hub = WritableHub(f"http://127.0.0.1:{server.server_address[1]}", storage, token)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
