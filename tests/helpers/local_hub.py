"""
A Hugging Face Hub in one file, spoken to over real HTTP: repositories with commits, branches and large files.

    with LocalHub() as hub:
        HfApi(endpoint=hub.url, token="hf_local").create_repo("tester/model")

It knows what `huggingface_hub`, transformers and diffusers ask when they create, list, upload, download and delete.
Not covered: xet, pull requests, gated repositories.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_local"
USER = "tester"
LARGE = 100_000  # files from this size on are "large": they are put to a store of their own, as weights always are


class HubError(Exception):
    """An answer that `huggingface_hub` turns into the exception that users see."""

    def __init__(self, status: int, code: str, message: str, **content: str):
        super().__init__(message)
        self.status, self.code, self.content = status, code, content


@dataclass
class Repo:
    """Commits by their hash, and what the branches point to."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"there is no revision {revision}")
        return sha

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        parent = self.branches.get(branch, "")
        sha = hashlib.sha1(f"{parent}{message}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha


def git_oid(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LocalHub:
    """
    The server; a context manager.

    Attributes:
        url (`str`): Its address.
        repos (`dict[str, Repo]`): Model repositories by their id.
        requests (`list[tuple[str, str]]`): Method and path of every request so far.
        before (`Callable[[str, str], None]`, *optional*): Called with method and path before each request is answered;
            what it raises is the answer. Lets a test interrupt an upload.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] | None = None
        self.lock = threading.RLock()

    def __enter__(self) -> "LocalHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Content of every file of a repository."""
        repo = self.repos[repo_id]
        return repo.commits[repo.resolve(revision)]

    def head(self, repo_id: str) -> str:
        """Hash of the newest commit of `main`."""
        return self.repos[repo_id].branches["main"]

    def messages(self, repo_id: str) -> list[str]:
        """Messages of all commits, the oldest first."""
        return list(self.repos[repo_id].messages.values())

    # Answers: their arguments are the groups of the pattern in _ROUTES

    def whoami(self, request):
        return {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def validate_yaml(self, request):
        return {"errors": [], "warnings": []}

    def create(self, request):
        wanted = request.json()
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if repo_id in self.repos:
            raise HubError(409, "", f"{repo_id} exists", url=f"{self.url}/{repo_id}")
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.repos[repo_id] = Repo(private)
        self.repos[repo_id].commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": "0" * 24}

    def delete(self, request):
        wanted = request.json()
        del self.repos[f"{wanted.get('organization') or USER}/{wanted['name']}"]
        return {}

    def preupload(self, request, repo_id, revision):
        files = self.files(repo_id, revision)
        answer = []
        for wanted in request.json()["files"]:
            path, is_large = wanted["path"], wanted["size"] >= LARGE or wanted["path"].endswith(".safetensors")
            known = files.get(path)
            oid = None if known is None else hashlib.sha256(known).hexdigest() if is_large else git_oid(known)
            mode = "lfs" if is_large else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def batch(self, request, repo_id):
        objects = []
        for wanted in request.json()["objects"]:
            actions = {} if wanted["oid"] in self.large else {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted | ({"actions": actions} if actions else {}))
        return {"transfer": "basic", "objects": objects}

    def put_large(self, request, oid):
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, "", "the content is not what its name says")
        self.large[oid] = request.body
        return {}

    def commit(self, request, repo_id, branch):
        repo = self.repos[repo_id]
        head = repo.resolve(branch)
        files, message = dict(repo.commits[head]), ""
        for line in request.body.decode().splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    raise HubError(412, "", "the branch has moved on")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {path: content for path, content in files.items() if not path.startswith(value["path"])}
        sha = repo.commit(branch, message, files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"}

    def create_branch(self, request, repo_id, branch):
        repo = self.repos[repo_id]
        repo.branches.setdefault(
            branch, repo.resolve(json.loads(request.body or b"{}").get("startingPoint") or "main")
        )
        return {}

    def refs(self, request, repo_id):
        branches = self.repos[repo_id].branches.items()
        heads = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        return {"branches": heads, "tags": [], "converts": [], "pullRequests": []}

    def tree(self, request, repo_id, revision, folder=""):
        files = self.files(repo_id, revision)
        start = f"{folder}/" if folder else ""
        inside = {path: content for path, content in files.items() if path.startswith(start)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        listed: dict[str, dict] = {}
        for path, content in sorted(inside.items()):
            first, deeper, _ = path[len(start) :].partition("/")
            if deeper and not recursive:
                listed[first] = {"type": "directory", "path": start + first, "oid": git_oid(first.encode()), "size": 0}
            else:
                listed[path] = {"type": "file", "path": path, "oid": git_oid(content), "size": len(content)}
        return list(listed.values())

    def info(self, request, repo_id, revision="main"):
        repo = self.repos[repo_id]
        sha = repo.resolve(revision)
        siblings = [{"rfilename": path, "size": len(content)} for path, content in sorted(repo.commits[sha].items())]
        return {
            "_id": "0" * 24,
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.partition("/")[0],
            "sha": sha,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }

    def download(self, request, repo_id, revision, path):
        sha = self.repos[repo_id].resolve(revision)
        content = self.files(repo_id, sha).get(path)
        if content is None:
            raise HubError(404, "EntryNotFound", f"there is no {path}")
        request.extra_headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if wanted is None:
            return content
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        request.status = 206
        request.extra_headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return content[first : last + 1]


_ID = r"([^/]+/[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", LocalHub.whoami),
    ("POST", r"/api/validate-yaml", LocalHub.validate_yaml),
    ("POST", r"/api/repos/create", LocalHub.create),
    ("DELETE", r"/api/repos/delete", LocalHub.delete),
    ("POST", rf"/api/models/{_ID}/preupload/([^/]+)", LocalHub.preupload),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", LocalHub.batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", LocalHub.put_large),
    ("POST", rf"/api/models/{_ID}/commit/([^/]+)", LocalHub.commit),
    ("POST", rf"/api/models/{_ID}/branch/([^/]+)", LocalHub.create_branch),
    ("GET", rf"/api/models/{_ID}/refs", LocalHub.refs),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)", LocalHub.tree),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)/(.+)", LocalHub.tree),
    ("GET", rf"/api/models/{_ID}", LocalHub.info),
    ("GET", rf"/api/models/{_ID}/revision/([^/]+)", LocalHub.info),
    ("GET", rf"/{_ID}/(?:resolve|raw)/([^/]+)/(.+)", LocalHub.download),
    ("GET", rf"/api/resolve-cache/models/{_ID}/([^/]+)/(.+)", LocalHub.download),
]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Tests read `hub.requests` instead."""

    def json(self):
        return json.loads(self.body)

    def answer(self):
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.status, self.extra_headers = 200, {}
        self.body = self._read_body()
        method = "GET" if self.command == "HEAD" else self.command
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            try:
                if self.hub.before is not None:
                    self.hub.before(self.command, path)
                content = self._route(method, path)
            except HubError as error:
                self.status = error.status
                self.extra_headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
                content = {"error": str(error), **error.content}
        self._send(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

    def _route(self, method: str, path: str):
        known_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if (method != "GET" or path == "/api/whoami-v2") and not path.startswith("/lfs/") and not known_token:
            raise HubError(401, "", "log in first")
        for route_method, pattern, function in _ROUTES:
            found = re.fullmatch(pattern, path)
            if route_method != method or not found:
                continue
            groups = found.groups()
            if groups and "/" in groups[0]:  # it names a repository; a private one is hidden from strangers
                repo = self.hub.repos.get(groups[0])
                if repo is None or (repo.private and not known_token):
                    raise HubError(401 if not known_token else 404, "RepoNotFound", "Repository not found")
            return function(self.hub, self, *groups)
        raise HubError(404, "", f"no route {method} {path}")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, content):
        is_file = isinstance(content, bytes)
        body = content if is_file else json.dumps(content).encode()
        self.send_response(self.status)
        for name, value in self.extra_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if is_file else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
