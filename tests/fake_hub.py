"""A Hugging Face hub on this computer, as small as the real client allows.

It keeps repositories in memory: {"owner/name": {file: bytes}}. Names decide on what goes wrong:
"gated/...", "private/..." and "broken/...".
"""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {
    "gated": (403, "GatedRepo"),
    "private": (401, "RepoNotFound"),
    "broken": (500, ""),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        api = r"/api/models/([^/]+/[^/?]+)(?:/(revision|tree)/([^/?]+))?"
        if found := re.match(api, self.path):
            repo, what, revision = found[1], found[2], found[3] or "main"
            if self.refuse(repo, revision):
                return
            files = self.server.repositories[repo].items()
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files
            ]
            names = [{"rfilename": name} for name, _ in files]
            about = {"id": repo, "sha": COMMIT, "siblings": names}
            self.answer(200, tree if what == "tree" else about)
        elif found := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            content = self.server.repositories[found[1]][found[3]]
            tag = hashlib.sha1(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, {})

    do_HEAD = do_GET

    def do_POST(self):
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            made = json.loads(body)
            repo = f"{made['organization']}/{made['name']}"
            if repo.split("/")[0] in ERRORS:
                status, code = ERRORS[repo.split("/")[0]]
                self.answer(status, {"error": "no"}, {"X-Error-Code": code})
                return
            self.server.repositories.setdefault(repo, {})
            hidden = made.get("private") or made.get("visibility") == "private"
            self.server.private[repo] = hidden
            self.answer(200, {"url": f"http://{self.headers['Host']}/{repo}"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            self.answer(200, {"files": modes})
        elif found := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
            lines = [json.loads(line) for line in body.splitlines()]
            for value in (line["value"] for line in lines if line["key"] == "file"):
                content = base64.b64decode(value["content"])
                self.server.repositories[found[1]][value["path"]] = content
            url = f"https://huggingface.co/{found[1]}/commit/{COMMIT}"
            self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.answer(200, {})

    def refuse(self, repo, revision):
        owner = repo.split("/")[0]
        if owner in ERRORS:
            status, code = ERRORS[owner]
        elif repo not in self.server.repositories:
            status, code = 404, "RepoNotFound"
        elif revision not in ("main", COMMIT):
            status, code = 404, "RevisionNotFound"
        else:
            return False
        self.answer(status, {"error": "no"}, {"X-Error-Code": code})
        return True

    def answer(self, status, content, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def fake_hub(monkeypatch):
    """The server; `.repositories`, `.private` and `.asked` are what it holds and was asked."""
    from huggingface_hub import constants, file_download, hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.private, server.asked = {}, {}, []
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    for module in (constants, file_download):  # the latter has its own in old versions
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
