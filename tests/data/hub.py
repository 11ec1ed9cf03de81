"""A small server in place of the Hugging Face hub: it answers what `huggingface_hub` asks about a repository."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

# Name of a repository as its addresses have it, such as `datasets/owner/name` -> file -> content.
Repositories = dict[str, dict[str, bytes]]


def commit_of(files: dict[str, bytes]) -> str:
    """Return the commit of a repository, which its files determine."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    repositories: Repositories
    withheld: set[str]  # files that are not sent

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        is_question = path.startswith("api/")
        path = path.removeprefix("api/").removeprefix("models/")
        for name, files in self.repositories.items():
            if path == name or path.startswith(f"{name}/"):
                rest = path.removeprefix(name).strip("/")
                return self.about(files, rest) if is_question else self.file(files, rest.split("/", 2)[2])
        self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def about(self, files: dict[str, bytes], rest: str) -> None:
        content: Any = {"id": "a/b", "sha": commit_of(files), "siblings": []}
        if rest.startswith("revision/") and rest.split("/")[1] not in ("main", "v1", commit_of(files)):
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        if rest.startswith("tree/"):
            content = [
                {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for path, body in files.items()
            ]
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def file(self, files: dict[str, bytes], path: str) -> None:
        body = files[path]
        if path in self.withheld and self.command == "GET":
            time.sleep(30)
        self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=commit_of(files))


@contextmanager
def hub(repositories: Repositories, withheld: set[str]) -> Iterator[str]:
    """Serve repositories on a free port of this machine, and yield the address for the variable HF_ENDPOINT.

    Args:
        repositories: what is served.
        withheld: files that are asked for in vain. The set may change while the server runs.
    """
    handler = type("OwnHandler", (Handler,), {"repositories": repositories, "withheld": withheld})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
