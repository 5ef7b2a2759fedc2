"""A small Hugging Face Hub on the loopback interface. Tests push and pull with the real client, unpatched.

    with HubServer(tokens={"hf_owner": "me", "hf_reader": User("me", write=False)}) as hub:
        hub.add_repo("google/tiny", {"config.json": b"{}"}, gated=True)
        subprocess.run(command, env=os.environ | hub.environment(tmp_path, "hf_owner"))
        assert hub.repo("me/model").files() == wanted

`python tests/support/hub_server.py` runs a Hub until Ctrl-C. It prints the lines that make a shell use it as user "me".

It answers the requests that huggingface_hub 1.3 to 2.4 make for models: repos, commits, pull requests, LFS, downloads.
It also answers the requests by which the library datasets reads a data set, which is a repo like any other here.
Status codes, headers and messages are those of the real Hub, because the client's errors and retries depend on them.
There is no Xet. `environment` tells the client so, because recent ones would send large files by it.
"""

import base64
import contextlib
import hashlib
import json
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npy", ".npz", ".onnx", ".parquet", ".model", ".zip", ".gz")
LFS_SIZE = 1 << 20  # The Hub's own bound is 10 MB. With a smaller one, tests need no large files.
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
KIND = "(?:models|datasets)"
ID, REV = "(?P<id>(?:[^/]+/)?[^/]+)", "(?P<rev>[^/]+)"
NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?(?<!\.git)(?<!\.ipynb)", re.ASCII)


@dataclass(frozen=True)
class User:
    """The owner of a token. `write=False` makes it a read-only token. `orgs` are namespaces beside the user's own."""

    name: str
    write: bool = True
    orgs: tuple[str, ...] = ()


@dataclass
class Request:
    """The request that a route gets. `user` is None if it has no token."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    user: User | None = None

    def json(self):
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Response:
    """The answer to a request."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content, status=200, **headers):
        return cls(json.dumps(content).encode(), status, {"Content-Type": "application/json"} | headers)


class Refused(Exception):
    """An error answer. The client turns `code` into RepositoryNotFoundError, GatedRepoError and so on."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | dict(headers or {})
        self.response = Response.json({"error": message}, status, **headers)


@dataclass
class Fault:
    """A planned failure of `times` matching requests, from the `nth` on (see `HubServer.fault`).

    Args:
        match: Regular expression for "METHOD path".
        status: Status code of the answer.
        times: How many requests fail.
        nth: The first of the matching requests that fails, counted from 1.
        after: Whether the request takes effect before it fails.
        drop: Whether the connection is closed without an answer.
        seen: How many matching requests have come.
    """

    match: str
    status: int
    times: float
    nth: int
    after: bool
    drop: bool
    seen: int = 0

    def strikes(self, request: Request) -> bool:
        """Count a request if it matches, and return whether it fails."""
        if not re.search(self.match, f"{request.method} {request.path}"):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times

    def answer(self) -> Response | None:
        """Return the error, or None to close the connection."""
        return None if self.drop else Response.json({"error": "a fault that the test asked for"}, self.status)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str, data: bytes, size: int | None = None) -> bool:
    """Return whether a file is stored outside git. An empty file never is: the client sends it as a regular file.

    If `size` is given, `data` is only the file's beginning.
    """
    size = len(data) if size is None else size
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in data[:512])


def stored_as(path: str, data: bytes) -> str:
    """Return the hash that the client checks, and uses as the file's name in its cache."""
    return sha256(data) if is_lfs(path, data) else git_sha(data)


def file_entry(path: str, data: bytes) -> dict:
    """Return a file's entry in listings. For an LFS file, git holds only a pointer."""
    if not is_lfs(path, data):
        return {"type": "file", "path": path, "size": len(data), "oid": git_sha(data)}
    oid, size = sha256(data), len(data)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
    lfs = {"oid": oid, "sha256": oid, "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": size, "oid": git_sha(pointer), "lfs": lfs}


def file_response(data: bytes, etag: str, request: Request, **headers) -> Response:
    """Return the answer with the bytes, or with the part that the request's Range names."""
    headers |= {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if not wanted:
        return Response(data, 200, headers)
    start, stop = int(wanted[1]), min(int(wanted[2] or len(data) - 1) + 1, len(data))
    if start >= len(data):
        raise Refused(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
    return Response(data[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def card_errors(card: str) -> list[dict]:
    """Return the errors in a card's metadata, as the Hub reports them.

    Each line must be `key: value` or continue the line before, and a base model, in the field or in a tag, must be an
    id. The real Hub parses the YAML and checks more keys.
    """
    metadata = re.match(r"---\s*\n(.*?)^---\s*$", card, re.DOTALL | re.MULTILINE)
    lines = metadata[1].splitlines() if metadata else []
    wrong = [line for line in lines if line.strip() and not re.match(r"[\s#-]|[\w.\"'-]+:(\s|$)", line)]
    named = re.findall(r"^(?:base_model:|- base_model:(?:\w+:)?)[ \t]*(\S.*)$", "\n".join(lines), re.MULTILINE)
    no_ids = [name for name in named if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name.strip("\"'"))]
    return [{"message": f'"metadata" must be a mapping: {line!r}'} for line in wrong] + [
        {"message": f'"base_model" with value {name!r} is not valid. Use a model id.'} for name in no_ids
    ]


def full_ref(revision: str) -> str:
    return revision if revision.startswith("refs/") else f"refs/heads/{revision}"


@dataclass(frozen=True)
class Commit:
    """An immutable snapshot of all files, by path."""

    oid: str
    files: Mapping[str, bytes]
    parent: str | None
    title: str
    author: str


class Repo:
    """A repo of a model or of a data set.

    `commits` holds the commits of all branches and pull requests, the oldest first. `refs` holds the newest commit of
    each branch, tag and pull request, by its full name.
    """

    def __init__(self, repo_id: str, private: bool, gated: bool, readers: Iterable[str], lock):
        self.id, self.namespace = repo_id, repo_id.rpartition("/")[0]
        self.private, self.gated, self.readers = private, gated, tuple(readers)
        self.commits: list[Commit] = []
        self.refs: dict[str, Commit] = {}
        self.blobs: dict[str, bytes] = {}  # LFS files by sha256, also uploaded ones that are in no commit
        self._lock = lock

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag, a full ref, or a sha of at least 7 characters."""
        for ref in (full_ref(revision), f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.refs[ref]
        named = [commit for commit in self.commits if len(revision) >= 7 and commit.oid.startswith(revision)]
        return named[0] if named else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return a copy of the files. Raise KeyError if there is no such revision."""
        commit = self.find(revision)
        if commit is None:
            raise KeyError(revision)
        return dict(commit.files)

    def commit(self, files, revision="main", title="changed under way", author="system", parent=None) -> Commit:
        """Commit `files` (None deletes one) on `parent`, by default the commit of `revision`, and move `revision`."""
        with self._lock:
            ref = full_ref(revision)
            parent = parent or self.refs.get(ref)
            merged = {**(parent.files if parent else {}), **files}
            merged = {path: data for path, data in merged.items() if data is not None}
            content = [(path, git_sha(data)) for path, data in merged.items()]
            oid = hashlib.sha1(f"{self.id} {len(self.commits)} {title} {content}".encode()).hexdigest()
            commit = Commit(oid, merged, parent and parent.oid, title, author)
            self.blobs |= {sha256(data): data for path, data in merged.items() if is_lfs(path, data)}
            self.commits.append(commit)
            self.refs[ref] = commit
            return commit

    def refs_of(self, kind: str) -> list[dict]:
        """Return the refs of a kind (heads, tags or pr) as the Hub lists them."""
        prefix = f"refs/{kind}/"
        named = {ref.removeprefix(prefix): ref for ref in self.refs if ref.startswith(prefix)}
        return [{"name": name, "ref": ref, "targetCommit": self.refs[ref].oid} for name, ref in named.items()]

    def admits(self, user: User | None) -> bool:
        """Return whether a user may see a private repo, or read the files of a gated one."""
        return user is not None and (self.namespace in (user.name, *user.orgs) or user.name in self.readers)

    def writable_by(self, user: User) -> bool:
        return user.write and self.namespace in (user.name, *user.orgs)


class HubServer:
    """The Hub: repos by id, tokens, past requests and planned faults. A `with` block starts and stops it."""

    def __init__(self, tokens: Mapping[str, str | User] | None = None):
        users = {token: user if isinstance(user, User) else User(user) for token, user in (tokens or {}).items()}
        self.users: dict[str, User] = users
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []  # (method, path without query), in the order of arrival
        self.before: Callable[[str, str], None] | None = None  # called with (method, path) before each request
        self.closed = False
        self._faults: list[Fault] = []
        self._lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        # Large files are on another host, as on the real Hub, and the client must not send its token there. The host
        # needs another name as well, because huggingface_hub 1.x follows redirects to the same name too early.
        self._listeners = [_Listener(self), _Listener(self)]
        hosts = zip(("127.0.0.1", "localhost"), self._listeners, strict=True)
        self.endpoint, self.storage = (f"http://{host}:{listener.server_port}" for host, listener in hosts)
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed = True
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return the environment in which a process uses this Hub, with caches in `home`."""
        caches = {"HF_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules", "HF_TOKEN_PATH": "token", "HF_HOME": ""}
        tokens = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), token or "")
        switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        direct = {"HF_ENDPOINT": self.endpoint} | dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
        return {name: str(home / place) for name, place in caches.items()} | tokens | switches | direct

    def repo(self, repo_id: str) -> Repo:
        return self.repos[repo_id]

    def add_repo(self, repo_id, files: Mapping[str, bytes], private=False, gated=False, readers: Iterable[str] = ()):
        """Add a repo with these files in one commit. `readers` are users who may read a private or gated one."""
        repo = self.repos[repo_id] = Repo(repo_id, private, gated, readers, self._lock)
        repo.commit(files, title="initial commit")
        return repo

    def add_folder(self, repo_id, folder: Path, **options) -> Repo:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.add_repo(repo_id, files, **options)

    def fault(self, match, status=503, times: float = 1, nth=1, after=False, drop=False):
        """Make requests fail whose "METHOD path" a regular expression matches: `times` of them from the `nth` on.

        With `after`, the request takes effect first. With `drop`, the connection is closed without an answer.
        """
        self._faults.append(Fault(match, status, times, nth, after, drop))

    def answer(self, request: Request) -> Response | None:
        """Return the answer to a request, or None to close the connection without one."""
        self.requests.append((request.method, request.path))
        if self.before:
            self.before(request.method, request.path)
        with self._lock:
            faults = [fault for fault in self._faults if fault.strikes(request)]
            if faults and not faults[0].after:
                return faults[0].answer()
            response = self._answer(request)
        return faults[0].answer() if faults else response

    def _answer(self, request: Request) -> Response:
        for methods, pattern, handle in self.ROUTES:
            match = pattern.fullmatch(request.path)
            if match and request.method in methods:
                parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                try:
                    self._identify(request)
                    return handle(self, request, **parts)
                except Refused as refused:
                    return refused.response
        return Refused(404, f"{request.method} {request.path}: this Hub does not answer such a request").response

    def _identify(self, request: Request) -> None:
        """Set the request's user to the owner of its token. As on the Hub, an unknown token is refused everywhere."""
        token = request.headers.get("Authorization")
        if token is not None:
            request.user = self.users.get(token.removeprefix("Bearer "))
            if request.user is None:
                raise Refused(401, "Invalid credentials in Authorization header")

    # --- permissions

    def _visible_repo(self, request: Request, repo_id: str) -> Repo:
        """Return a repo that the user may see. To others, a private repo must look like a missing one."""
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and not repo.admits(request.user)):
            self._user(request)
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def _readable_repo(self, request: Request, repo_id: str) -> Repo:
        """Return a repo whose files the user may read."""
        repo = self._visible_repo(request, repo_id)
        if repo.gated and not repo.admits(request.user):
            why = "you are not in the authorized list" if request.user else "you must be authenticated to access it"
            raise Refused(403 if request.user else 401, f"Access to model {repo_id} is restricted: {why}.", "GatedRepo")
        return repo

    def _writable_repo(self, request: Request, repo_id: str) -> Repo:
        """Return a repo that the user may write to, or propose changes to if the request does that."""
        repo, user = self._visible_repo(request, repo_id), self._user(request)
        if not user.write:
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        if not repo.writable_by(user) and request.query.get("create_pr") != "1":
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    @staticmethod
    def _user(request: Request) -> User:
        """Return the user of a request that needs one.

        At an https address, the client turns a 401 on a repo into RepositoryNotFoundError. Here it needs the code.
        """
        if request.user is None:
            of_a_repo = re.match("/api/models/|.+/resolve/", request.path)
            raise Refused(401, "Invalid username or password.", "RepoNotFound" if of_a_repo else None)
        return request.user

    @staticmethod
    def _commit(repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- accounts and repos

    def whoami(self, request):
        user = self._user(request)
        token = {"displayName": "test", "role": "write" if user.write else "read"}
        orgs = [{"type": "org", "name": name} for name in user.orgs]
        return Response.json({"type": "user", "name": user.name, "orgs": orgs, "auth": {"accessToken": token}})

    def create_repo(self, request):
        user, wanted = self._user(request), request.json()
        namespace, name = wanted.get("organization") or user.name, wanted["name"]
        repo_id = f"{namespace}/{name}"
        private = wanted.get("private") or wanted.get("visibility") == "private"  # 1.3 sends the first, 2.4 the second.
        repo, url = Repo(repo_id, bool(private), False, (), self._lock), {"url": f"{self.endpoint}/{repo_id}"}
        if not NAME.fullmatch(name):
            raise Refused(400, f'"name" with value "{name}" fails to match the required pattern')
        if not repo.writable_by(user):
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if repo_id in self.repos:
            return Response.json({"error": "You already created this model repo"} | url, 409)
        repo.commit({".gitattributes": ATTRIBUTES}, title="initial commit")
        self.repos[repo_id] = repo
        return Response.json(url)

    def delete_repo(self, request):
        wanted = request.json()
        repo_id = f"{wanted.get('organization') or self._user(request).name}/{wanted['name']}"
        self._writable_repo(request, repo_id)
        del self.repos[repo_id]
        return Response.json({})

    def info(self, request, id, rev):
        repo = self._visible_repo(request, id)
        commit = self._commit(repo, rev or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        if "blobs" in request.query:
            entries = [file_entry(path, data) for path, data in commit.files.items()]
            siblings = [entry | {"rfilename": entry["path"], "blobId": entry["oid"]} for entry in entries]
        about = {"id": id, "modelId": id, "author": repo.namespace, "sha": commit.oid, "lastModified": DATE}
        state = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False}
        return Response.json(about | state | {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def tree(self, request, id, rev, path):
        files = self._commit(self._visible_repo(request, id), rev).files
        prefix = f"{path}/" if path else ""
        inside = {name: data for name, data in files.items() if name.startswith(prefix)}
        if path and not inside:
            raise Refused(404, f'{path} does not exist on "{rev}"', "EntryNotFound")
        parents = {str(parent) for name in inside for parent in Path(name).parents if str(parent).startswith(prefix)}
        listed = [{"type": "directory", "path": name, "size": 0, "oid": git_sha(b"")} for name in parents - {"."}]
        listed += [file_entry(name, data) for name, data in inside.items()]
        if request.query.get("recursive", "").lower() != "true":
            listed = [entry for entry in listed if "/" not in entry["path"].removeprefix(prefix)]
        return Response.json(listed)

    def refs(self, request, id):
        repo = self._visible_repo(request, id)
        listed = {"branches": repo.refs_of("heads"), "converts": [], "tags": repo.refs_of("tags")}
        return Response.json(listed | ({"pullRequests": repo.refs_of("pr")} if "include_prs" in request.query else {}))

    def history(self, request, id, rev):
        repo = self._visible_repo(request, id)
        listed, commit = [], self._commit(repo, rev)
        while commit:
            about = {"id": commit.oid, "title": commit.title, "message": "", "date": DATE}
            listed.append(about | {"authors": [{"user": commit.author}]})
            commit = commit.parent and repo.find(commit.parent)
        return Response.json(listed)

    def create_branch(self, request, id, rev):
        return self._create_ref(request, id, f"refs/heads/{rev}", request.json().get("startingPoint", "main"))

    def create_tag(self, request, id, rev):
        return self._create_ref(request, id, f"refs/tags/{request.json()['tag']}", rev)

    def _create_ref(self, request, repo_id, ref, start):
        repo = self._writable_repo(request, repo_id)
        commit = self._commit(repo, start)
        if ref in repo.refs:
            raise Refused(409, f"Reference already exists: {ref}")
        repo.refs[ref] = commit
        return Response.json({})

    # --- uploads

    def validate_yaml(self, request):
        errors = card_errors(request.json()["content"])
        return Response.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, request, id, rev):
        """Return which files go by LFS, and the hashes of those that the repo has, which the client skips."""
        existing = self._commit(self._writable_repo(request, id), rev).files
        described = []
        for file in request.json()["files"]:
            path = file["path"]
            mode = "lfs" if is_lfs(path, base64.b64decode(file["sample"]), file["size"]) else "regular"
            oid = {"oid": stored_as(path, existing[path])} if path in existing else {}
            described.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | oid)
        return Response.json({"files": described})

    def lfs_batch(self, request, id):
        """Return where to upload each LFS file that is missing. Requests for a pull request have no `ref`."""
        repo, user, wanted = self._visible_repo(request, id), self._user(request), request.json()
        if "ref" in wanted and not repo.writable_by(user):
            raise Refused(403, "Authorization error.")
        described = []
        for file in wanted["objects"]:
            put, verify = f"{self.storage}/stored/{id}/{file['oid']}", f"{self.endpoint}/{id}.git/info/lfs/verify"
            todo = {} if file["oid"] in repo.blobs else {"upload": {"href": put}, "verify": {"href": verify}}
            described.append({"oid": file["oid"], "size": file["size"]} | ({"actions": todo} if todo else {}))
        return Response.json({"transfer": "basic", "objects": described})

    def store(self, request, id, oid):
        """Store an LFS file. The address contains the hash, which stands for a signature, so it needs no token."""
        blobs = self.repos[id].blobs if id in self.repos else {}
        if request.user:
            raise Refused(400, "Only one auth mechanism allowed")
        if request.method == "PUT" and sha256(request.body) == oid:
            blobs[oid] = request.body
            return Response()
        if request.method == "PUT" or oid not in blobs:
            raise Refused(400, "The file is missing, or is not the one that was announced")
        return file_response(blobs[oid], oid, request)

    def verify(self, request, id):
        wanted = request.json()
        if len(self._visible_repo(request, id).blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "The file was not uploaded")
        return Response.json({})

    def commit(self, request, id, rev):
        """Apply all operations or none: every check comes before the branch moves."""
        repo, user = self._writable_repo(request, id), self._user(request)
        proposal = request.query.get("create_pr") == "1"
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        ref, expected = full_ref(rev), header["value"].get("parentCommit")
        if ref not in repo.refs:
            raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        parent = self._commit(repo, expected) if expected and proposal else repo.refs[ref]
        if expected and not parent.oid.startswith(expected):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        changes = self._changes(repo, parent, operations)
        number = len(repo.refs_of("pr")) + 1
        ref = f"refs/pr/{number}" if proposal else ref
        new = repo.commit(changes, ref, header["value"]["summary"], user.name, parent)
        answer = {"success": True, "commitOid": new.oid, "commitUrl": f"{self.endpoint}/{id}/commit/{new.oid}"}
        pull_request = {"pullRequestUrl": f"{self.endpoint}/{id}/discussions/{number}"} if proposal else {}
        return Response.json(answer | pull_request)

    @staticmethod
    def _changes(repo: Repo, parent: Commit, operations: list[dict]) -> dict[str, bytes | None]:
        """Return the operations of a commit as files by path, with None for a deleted file."""
        changes: dict[str, bytes | None] = {}
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            path = value["path"]
            if key == "file":
                changes[path] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in repo.blobs:
                changes[path] = repo.blobs[value["oid"]]
            elif key == "deletedFile" and path in parent.files:
                changes[path] = None
            elif key == "deletedFolder" and any(name.startswith(f"{path.rstrip('/')}/") for name in parent.files):
                changes |= {name: None for name in parent.files if name.startswith(f"{path.rstrip('/')}/")}
            elif key.startswith("deleted"):
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            else:
                raise Refused(400, f"{path}: {key} needs a file that was never uploaded, or is unknown to this Hub")
        return changes

    # --- downloads

    def resolve(self, request, id, rev, path):
        """Return a file. For an LFS file, return the address in the storage, as a redirect."""
        commit = self._commit(self._readable_repo(request, id), rev)
        data, headers = commit.files.get(path), {"X-Repo-Commit": commit.oid}
        if data is None:
            raise Refused(404, "Entry not found", "EntryNotFound", headers)
        etag = stored_as(path, data)
        if not is_lfs(path, data):
            return file_response(data, etag, request, **headers)
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        return Response(b"", 302, headers | linked | {"Location": f"{self.storage}/stored/{id}/{etag}"})

    ROUTES = tuple(
        (methods.split(), re.compile(path.replace("KIND", KIND).replace("ID", ID).replace("REV", REV)), handle)
        for methods, path, handle in (
            ("GET", "/api/whoami-v2", whoami),
            ("POST", "/api/repos/create", create_repo),
            ("DELETE", "/api/repos/delete", delete_repo),
            ("POST", "/api/validate-yaml", validate_yaml),
            ("GET", "/api/KIND/ID/tree/REV(?:/(?P<path>.+))?", tree),
            ("GET", "/api/KIND/ID/refs", refs),
            ("GET", "/api/KIND/ID/commits/REV", history),
            ("POST", "/api/KIND/ID/branch/REV", create_branch),
            ("POST", "/api/KIND/ID/tag/REV", create_tag),
            ("POST", "/api/KIND/ID/preupload/REV", preupload),
            ("POST", "/api/KIND/ID/commit/REV", commit),
            ("GET", "/api/KIND/ID(?:/revision/REV)?", info),
            ("POST", "/ID.git/info/lfs/objects/batch", lfs_batch),
            ("POST", "/ID.git/info/lfs/verify", verify),
            ("GET HEAD", "/(?:datasets/)?ID/resolve/REV/(?P<path>.+)", resolve),
            ("GET HEAD PUT", "/stored/ID/(?P<oid>[0-9a-f]{64})", store),
        )
    )


class _Listener(ThreadingHTTPServer):
    """A port of the Hub. Its threads are daemons, because a client may keep its connection after the test."""

    daemon_threads = True

    def __init__(self, hub: HubServer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request, client_address):
        if self.hub.closed or isinstance(sys.exc_info()[1], ConnectionError):
            return  # Tests kill clients, so a broken connection is nothing to report.
        super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Read a whole request, so that an incomplete one has no effect, and send the Hub's answer."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Headers and body go in one packet, which saves the wait for the client's acknowledgement.
    disable_nagle_algorithm = True
    server: _Listener

    def do_any(self):
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        request = Request(self.command, url.path, query, self.headers, self.read_body())
        response = None if self.server.hub.closed else self.server.hub.answer(request)
        if response is None:
            self.close_connection = True
            return
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def read_body(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("the client went away while it was sending")
        return body

    def log_message(self, *_):
        """Log nothing: `HubServer.requests` has it."""


def main() -> None:
    """Run an empty Hub until Ctrl-C, and print the lines that make a shell use it as user "me"."""
    with tempfile.TemporaryDirectory() as home, HubServer({"hf_me": "me"}) as hub:
        for name, value in hub.environment(Path(home), "hf_me").items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
