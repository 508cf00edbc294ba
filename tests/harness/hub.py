"""A local copy of what the Hugging Face hub answers to an upload; it keeps what it was sent."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """Repositories of models by name."""

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    full: bool = False
    """Reject every commit."""

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        match path.split("?")[0].strip("/").split("/"):
            case ["api", "whoami-v2"]:
                return 200, {"name": "someone", "type": "user", "auth": {}, "orgs": []}
            case ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
                private = bool(asked.get("private", asked.get("visibility") == "private"))
                self.private.setdefault(name, private)
                self.files.setdefault(name, {})
                return 200, {"url": f"{self.address}/{name}"}
            case ["api", "models", user, repo, *rest]:
                return self._model(f"{user}/{repo}", rest, body)
        return 404, {"error": path}

    def _model(self, name: str, rest: list[str], body: bytes) -> tuple[int, Any]:
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        match rest:
            case []:
                return 200, {"id": name, "private": self.private[name], "siblings": [], "tags": [], "downloads": 0}
            case ["tree", *_]:
                return 200, [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in self.files[name]]
            case ["preupload", _]:
                known = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for file in json.loads(body)["files"]]  # fmt: skip
                return 200, {"files": known}
            case ["commit", _]:
                if self.full:
                    return 403, {"error": "Storage limit reached"}
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "deletedFile":
                        del self.files[name][line["value"]["path"]]
                return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}/{name}/commit/0"}
        return 404, {"error": name}


@contextmanager
def serving() -> Iterator[Hub]:
    """The hub at 127.0.0.1, until the end."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, found = hub.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            data = json.dumps(found).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = respond

        def log_message(self, *_: Any) -> None:
            """Nothing on the tests' standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
