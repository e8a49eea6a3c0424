"""A stand-in for the Hugging Face Hub on localhost: as much of its API as huggingface_hub's client uses to make, fill,
list and download models. Everything is in memory."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_test"  # may read and write everything
LARGE = (".safetensors",)


class Repo:
    """commits: sha -> {path: content}. refs: branch -> sha."""

    def __init__(self, private: bool):
        self.private = private
        self.commits = {"0" * 40: {".gitattributes": b""}}
        self.refs = {"main": "0" * 40}
        self.messages: list[str] = []

    def sha(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)

    def commit(self, revision: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        listing = json.dumps([sorted((p, hashlib.sha256(c).hexdigest()) for p, c in files.items()), len(self.messages)])
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[sha], self.refs[revision] = files, sha
        return sha


class Hub(ThreadingHTTPServer):
    """repos: by name. objects: large files by SHA-256. requests: ``GET /path`` of each that came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        return

    def do_GET(self):
        self._handle("GET")

    def do_HEAD(self):
        self._handle("HEAD")

    def do_POST(self):
        self._handle("POST")

    def do_PUT(self):
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        body = self._body()
        path = urlsplit(self.path)
        self.server.requests.append(f"{method} {path.path}")
        try:
            for verb, pattern, answer in ROUTES:
                if verb == method.replace("HEAD", "GET") and (found := re.fullmatch(pattern, path.path)):
                    answer(self, *map(unquote, found.groups()), body=body, query=parse_qs(path.query))
                    return
            raise Refusal(404)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, b"{}", {key: value for key, value in headers.items() if value})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @property
    def knows(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        repo = self.server.repos.get(name)
        if repo is None or ((repo.private or write) and not self.knows):
            raise Refusal(404 if self.knows else 401, "RepoNotFound", "Repository not found")
        return repo

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self._repo(name)
        if (sha := repo.sha(revision)) is None:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        return sha, repo.commits[sha]

    # Answers -------------------------------------------------------------------------------------------------

    def create(self, *, body, query):
        if not self.knows:
            raise Refusal(401, "", "Invalid username or password.")
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repos:
            answer = json.dumps(dict(url=f"{self.server.endpoint}/{name}", error="You already created this model repo"))
            self._send(409, answer.encode())
            return
        self.server.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json(dict(url=f"{self.server.endpoint}/{name}", id=name))

    def yaml(self, *, body, query):
        wrong = "license: no-such-licence" in json.loads(body)["content"]
        errors = [dict(message='"license" must be one of [apache-2.0, mit, ...]')] if wrong else []
        self._send(400 if wrong else 200, json.dumps(dict(errors=errors, warnings=[])).encode())

    def branch(self, name, branch, *, body, query):
        repo = self._repo(name, write=True)
        if branch in repo.refs:
            raise Refusal(409)
        repo.refs[branch] = repo.refs["main"]
        self._json({})

    def preupload(self, name, revision, *, body, query):
        self._repo(name, write=True)
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in files}
        self._json(dict(files=[dict(path=p, uploadMode=mode, shouldIgnore=False) for p, mode in modes.items()]))

    def batch(self, name, *, body, query):
        self._repo(name, write=True)
        objects = [
            dict(own, actions=dict(upload=dict(href=f"{self.server.endpoint}/objects/{own['oid']}")))
            for own in json.loads(body)["objects"]
        ]
        self._json(dict(transfer="basic", objects=objects))

    def put(self, oid, *, body, query):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._json({})

    def commit(self, name, revision, *, body, query):
        repo = self._repo(name, write=True)
        files, message, pull = dict(self._files(name, revision)[1]), "", "create_pr" in query
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.commit("refs/pr/1" if pull else revision, files, message)
        url = f"{self.server.endpoint}/{name}"
        self._json(dict(commitUrl=f"{url}/commit/{sha}", commitOid=sha, pullRequestUrl=f"{url}/discussions/1"))

    def info(self, name, revision="main", *, body, query):
        sha, files = self._files(name, revision)
        own = dict(id=name, modelId=name, sha=sha, private=self._repo(name).private, tags=[], downloads=0, likes=0)
        self._json(own | dict(siblings=[dict(rfilename=path) for path in files]))

    def tree(self, name, revision, *, body, query):
        _, files = self._files(name, revision)
        self._json([self._entry(path, content) for path, content in files.items()])

    def _entry(self, path: str, content: bytes) -> dict:
        entry = dict(type="file", path=path, size=len(content), oid=hashlib.sha1(content).hexdigest())
        if path.endswith(LARGE):
            entry["lfs"] = dict(oid=hashlib.sha256(content).hexdigest(), size=len(content), pointerSize=130)
        return entry

    def resolve(self, name, revision, path, *, body, query):
        sha, files = self._files(name, revision)
        headers = {"X-Repo-Commit": sha}
        if path not in files:
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content, entry = files[path], self._entry(path, files[path])
        headers["ETag"] = f'"{entry["oid"]}"'
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
        self._send(200, content, headers)


_REPO, _REV = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.yaml),
    ("POST", f"/api/models/{_REPO}/branch/{_REV}", Handler.branch),
    ("POST", f"/api/models/{_REPO}/preupload/{_REV}", Handler.preupload),
    ("POST", f"/{_REPO}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/objects/(\w+)", Handler.put),
    ("POST", f"/api/models/{_REPO}/commit/{_REV}", Handler.commit),
    ("GET", f"/api/models/{_REPO}", Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/{_REV}", Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/{_REV}", Handler.tree),
    ("GET", f"/{_REPO}/resolve/{_REV}/(.+)", Handler.resolve),
]
