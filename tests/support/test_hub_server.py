"""The real client with the Hub of hub_server.py: it must behave as other tests rely on."""

import base64
import http.client
import inspect
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports each file by itself
from hub_server import LFS_SIZE, HubServer, User
from warm import warm_python

PRELUDE = """
import json, os, pathlib
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download

api = HfApi()

def outcome(call, *args, **kwargs):
    "What a call came to: "", or the error's class and the status of the answer."
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__} {getattr(getattr(error, 'response', None), 'status_code', '')}".strip()
    return ""

def add(path, data=b"new"):
    return CommitOperationAdd(path, data)

def commit(repo, *operations, message="ours", **kwargs):
    return api.create_commit(repo, list(operations), commit_message=message, **kwargs)
"""
TOKENS = {
    "hf_owner": "me",
    "hf_read": User("me", write=False),
    "hf_friend": "friend",
    "hf_stranger": User("stranger", orgs=("guild",)),
}


@pytest.fixture
def hub():
    with HubServer(TOKENS) as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    """Run code in a process that uses this Hub. Return the last line that it printed, read as JSON."""

    def run(code, token="hf_owner", **environment):
        environment = os.environ | hub.environment(tmp_path / "home", token) | environment
        command = [warm_python(), "-c", PRELUDE + textwrap.dedent(code)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def count(hub, method, part):
    return sum(method == sent and part in path for sent, path in hub.requests)


def test_a_folder_goes_up_and_comes_down(hub, client, tmp_path):
    wanted = {
        "README.md": b"---\nlicense: mit\n---\n",
        "sub dir/m.safetensors": bytes(range(256)) * 9,
        "empty.bin": b"",
    }
    wanted |= {"big.txt": b"a" * (LFS_SIZE + 1), "é.json": b"{}"}
    for path, data in wanted.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(data)
    printed = client("""
        url = api.create_repo("me/model", private=True)
        again = api.create_repo("model", exist_ok=True)  # of the token's own namespace
        refused = outcome(api.create_repo, "me/model")
        first, second = (api.upload_folder(repo_id="me/model", folder_path="folder").oid for _ in range(2))
        folder = snapshot_download("me/model")
        files = {path.relative_to(folder).as_posix(): path.read_bytes().hex()
                 for path in pathlib.Path(folder).rglob("*") if path.is_file()}
        print(json.dumps([url.repo_id, again.repo_id, refused, first, second, pathlib.Path(folder).name, files]))
    """)
    repo = hub.repo("me/model")
    attributes = repo.commits[0].files[".gitattributes"]
    assert repo.private and repo.files() == wanted | {".gitattributes": attributes}
    assert [commit.title for commit in repo.commits] == ["initial commit", "Upload folder using huggingface_hub"]
    head = repo.commits[-1].oid
    assert printed[:3] == ["me/model", "me/model", "HfHubHTTPError 409"]
    assert printed[3:6] == [head, head, head], "what has not changed must make no commit"
    assert {path: bytes.fromhex(data) for path, data in printed[6].items()} == repo.files()
    assert count(hub, "PUT", "/stored/") == 2 and count(hub, "POST", "/lfs/verify") == 2
    assert set(repo.blobs.values()) == {wanted["big.txt"], wanted["sub dir/m.safetensors"]}


def test_a_commit_adds_replaces_and_deletes_at_once(hub, client):
    old = {"a.txt": b"a", "b.txt": b"b", "d/x.bin": b"x", "d/e/y.txt": b"y", "dd.txt": b""}
    hub.add_repo("me/model", old)
    printed = client("""
        gone = [CommitOperationDelete("a.txt"), CommitOperationDelete("d/")]
        new = commit("me/model", *gone, add("b.txt"), add("w.safetensors", b"weights"))
        missing = outcome(commit, "me/model", CommitOperationDelete("nothing.txt"), add("c.txt"))
        print(json.dumps([new.oid, missing, api.list_repo_files("me/model")]))
    """)
    repo = hub.repo("me/model")
    assert repo.files() == {"b.txt": b"new", "dd.txt": b"", "w.safetensors": b"weights"}
    assert printed[0] == repo.commits[-1].oid and repo.commits[-1].author == "me"
    assert printed[1] == "RemoteEntryNotFoundError 404" and len(repo.commits) == 2
    assert sorted(printed[2]) == sorted(repo.files())
    assert repo.commits[0].files == old, "a commit never changes"


def test_listings(hub, client):
    hub.add_repo("me/model", {"a.txt": b"a", "d/x.bin": b"x", "d/e/y.txt": b"y"})
    printed = client("""
        tree = lambda *args, **kwargs: sorted(
            (entry.path, type(entry).__name__) for entry in api.list_repo_tree("me/model", *args, **kwargs))
        info = api.model_info("me/model", files_metadata=True)
        sizes = {file.rfilename: [file.size, bool(file.lfs)] for file in info.siblings}
        missing = outcome(tree, "nothing")
        print(json.dumps([tree(), tree(recursive=True), tree("d"), missing, sizes]))
    """)
    folders = [["d", "RepoFolder"], ["d/e", "RepoFolder"]]
    files = [["a.txt", "RepoFile"], ["d/e/y.txt", "RepoFile"], ["d/x.bin", "RepoFile"]]
    assert printed[0] == [files[0], folders[0]]
    assert printed[1] == sorted(files + folders)
    assert printed[2] == [folders[1], files[2]]
    assert printed[3] == "RemoteEntryNotFoundError 404"
    assert printed[4] == {"a.txt": [1, False], "d/x.bin": [1, True], "d/e/y.txt": [1, False]}


def test_a_pull_request_leaves_the_branch_alone(hub, client):
    hub.add_repo("me/model", {"a.txt": b"a"})
    before = hub.repo("me/model").commits[0]
    printed = client(
        """
        new = commit("me/model", add("b.safetensors"), create_pr=True)
        pulls = api.list_repo_refs("me/model", include_pull_requests=True).pull_requests
        file = hf_hub_download("me/model", "b.safetensors", revision=new.pr_revision)
        titles = [c.title for c in api.list_repo_commits("me/model", revision=new.pr_revision)]
        print(json.dumps([new.pr_url, new.pr_num, new.pr_revision, [p.ref for p in pulls], titles]))
        """,
        token="hf_stranger",
    )
    repo = hub.repo("me/model")
    assert printed[:2] == [f"{hub.endpoint}/me/model/discussions/1", 1]
    assert printed[2:] == ["refs/pr/1", ["refs/pr/1"], ["ours", "initial commit"]]
    assert repo.find("main") is before
    assert repo.files("refs/pr/1") == {"a.txt": b"a", "b.safetensors": b"new"}


def test_the_cache_is_used_and_serves_without_a_hub(hub, client, tmp_path):
    hub.add_repo("me/model", {"a.txt": b"one", "w.safetensors": b"weights"})
    download = """
        paths = [hf_hub_download("me/model", name) for name in ("a.txt", "w.safetensors")]
        etags = [os.path.basename(os.readlink(path)) for path in paths]
        print(json.dumps([paths, etags, [pathlib.Path(path).read_text() for path in paths]]))
    """
    _, etags, texts = client(download)
    assert texts == ["one", "weights"] and etags[0] != etags[1]
    assert count(hub, "GET", "/me/model/resolve/") == 1 and count(hub, "GET", "/stored/") == 1
    commit = hub.repo("me/model").commit({"a.txt": b"two"})
    changed = client(download)
    assert changed[2] == ["two", "weights"] and all(commit.oid in path for path in changed[0])
    assert changed[1][0] != etags[0] and changed[1][1] == etags[1]
    assert count(hub, "GET", "/me/model/resolve/") == 2 and count(hub, "GET", "/stored/") == 1, "unchanged: not fetched"
    seen = len(hub.requests)
    assert client(download, HF_HUB_OFFLINE="1") == changed and len(hub.requests) == seen
    hub.__exit__()
    assert client(download) == changed


def test_who_may_see_what(hub, client):
    hub.add_repo("me/open", {"a.txt": b""})
    hub.add_repo("me/secret", {"a.txt": b""}, private=True, readers=["friend"])
    hub.add_repo("me/gated", {"a.txt": b""}, gated=True, readers=["friend"])
    printed = client("""
        def look(token, repo):
            where = f"cache of {token}"
            return [outcome(api.model_info, repo, token=token), outcome(api.file_exists, repo, "a.txt", token=token),
                    outcome(hf_hub_download, repo, "a.txt", token=token, cache_dir=where)]
        tokens = [False, "hf_stranger", "hf_friend", "hf_read", "hf_wrong"]
        repos = ["open", "secret", "gated", "missing"]
        print(json.dumps([[look(token, f"me/{repo}") for repo in repos] for token in tokens]))
    """)
    unknown, missing = (["RepositoryNotFoundError 401", "", "RepositoryNotFoundError 401"] for _ in range(2))
    seen, absent = ["", "", ""], ["RepositoryNotFoundError 404", "", "RepositoryNotFoundError 404"]
    anonymous, stranger, friend, owner, wrong = printed
    assert anonymous == [seen, unknown, ["", "GatedRepoError 401", "GatedRepoError 401"], missing]
    assert stranger == [seen, absent, ["", "GatedRepoError 403", "GatedRepoError 403"], absent]
    assert friend == owner == [seen, seen, seen, absent]
    assert wrong == [["HfHubHTTPError 401"] * 3] * 4


def test_who_may_write_what(hub, client):
    hub.add_repo("me/open", {"a.txt": b"a"})
    hub.add_repo("me/secret", {"a.txt": b"a"}, private=True)
    attempts = """
        def attempt(token):
            return [
                outcome(api.create_repo, "me/new", token=token),
                outcome(api.create_repo, "me/open", exist_ok=True, token=token),
                outcome(commit, "me/open", add("b.bin"), token=token),
                outcome(commit, "me/secret", add("b.txt"), token=token),
                outcome(commit, "me/open", add("b.bin"), create_pr=True, token=token),
                outcome(api.create_branch, "me/open", branch="b", token=token),
                outcome(api.delete_repo, "me/secret", token=token)]
        print(json.dumps([attempt(token) for token in %s] + [api.whoami()["name"]]))
    """
    refused, unknown, anonymous = "HfHubHTTPError 403", "RepositoryNotFoundError 404", "RepositoryNotFoundError 401"
    printed = client(attempts % ["hf_read", False])
    assert printed[0] == [refused, "", *[refused] * 5]
    assert printed[1].pop(1) in ("", "HfHubHTTPError 401"), "2.4 looks whether the repo is there, 1.3 does not"
    assert printed[1] == ["HfHubHTTPError 401", *[anonymous] * 4, "HfHubHTTPError 401"] and printed[2] == "me"
    assert set(hub.repos) == {"me/open", "me/secret"}
    assert all(len(repo.commits) == 1 and set(repo.refs) == {"refs/heads/main"} for repo in hub.repos.values())
    printed = client(attempts % ["hf_stranger", "hf_owner"])
    assert printed == [[refused, "", refused, unknown, "", refused, unknown], [""] * 7, "me"]
    assert set(hub.repos) == {"me/open", "me/new"}
    assert hub.repo("me/open").files("b") == {"a.txt": b"a", "b.bin": b"new"}
    assert hub.repo("me/open").commits[1].author == "stranger"


def test_revisions(hub, client):
    first = hub.add_repo("me/model", {"a.txt": b"one"}).commits[0].oid
    hub.repo("me/model").commit({"a.txt": b"two"})
    printed = client(f"""
        api.create_tag("me/model", tag="v1", revision="{first}")
        api.create_branch("me/model", branch="old", revision="v1")
        commit("me/model", add("b.txt"), revision="old")
        again = [outcome(api.create_tag, "me/model", tag="v1"), outcome(api.create_branch, "me/model", branch="old"),
                 outcome(api.create_branch, "me/model", branch="old", exist_ok=True)]
        missing = [outcome(call, revision="nothing") for call in (
            lambda **at: api.model_info("me/model", **at), lambda **at: snapshot_download("me/model", **at),
            lambda **at: hf_hub_download("me/model", "a.txt", **at), lambda **at: commit("me/model", add("c"), **at))]
        entry = outcome(hf_hub_download, "me/model", "nothing.txt")
        read = lambda revision: open(hf_hub_download("me/model", "a.txt", revision=revision)).read()
        texts = [read(revision) for revision in (None, "main", "v1", "old", "{first}", "{first[:7]}")]
        no = [api.file_exists("me/model", "README.md"), api.revision_exists("me/model", "v2")]
        tags = [tag.name for tag in api.list_repo_refs("me/model").tags]
        print(json.dumps([again, missing, entry, texts, no, tags]))
    """)
    assert printed[0] == ["HfHubHTTPError 409", "HfHubHTTPError 409", ""]
    assert printed[1] == ["RevisionNotFoundError 404"] * 4
    assert printed[2] == "RemoteEntryNotFoundError 404"
    assert printed[3] == ["two", "two", "one", "one", "one", "one"]
    assert printed[4:] == [[False, False], ["v1"]]
    assert hub.repo("me/model").files("old") == {"a.txt": b"one", "b.txt": b"new"}
    assert hub.repo("me/model").files("v1") == {"a.txt": b"one"}


def test_two_pushes_at_once(hub, client):
    """If the branch moves just before a commit, a commit that names its parent is refused. Another goes on top."""
    repo = hub.add_repo("me/model", {"a.txt": b"a"})
    hub.before = lambda method, path: path.endswith("/commit/main") and repo.commit({"theirs.txt": b"theirs"})
    printed = client("""
        head = api.model_info("me/model").sha
        print(json.dumps([outcome(commit, "me/model", add(f"{at}.bin"), parent_commit=at) for at in (head, None)]))
    """)
    assert printed == ["HfHubHTTPError 412", ""]
    assert repo.files() == {"a.txt": b"a", "theirs.txt": b"theirs", "None.bin": b"new"}
    assert [commit.author for commit in repo.commits] == ["system", "system", "system", "me"]


def test_an_upload_is_tried_again_and_a_commit_is_not(hub, client):
    repo = hub.add_repo("me/model", {"a.txt": b"a"})
    hub.fault("PUT /stored", 503)
    hub.fault("/commit/main", 503, nth=2)
    hub.fault("/commit/main", drop=True, nth=3)
    hub.fault("/commit/main", drop=True, nth=4, after=True)
    hub.fault("/commit/main", 504, nth=5, after=True)
    printed = client("""
        pushes = [("me/model", add("b.bin", b"%d" % nth)) for nth in range(1, 6)]
        print(json.dumps([outcome(commit, *push, message=str(nth)) for nth, push in enumerate(pushes, 1)]))
    """)
    lost = "RemoteProtocolError"
    assert printed == ["", "HfHubHTTPError 503", lost, lost, "HfHubHTTPError 504"]
    assert [commit.title for commit in repo.commits] == ["initial commit", "1", "4", "5"], (
        "answers are lost, not commits"
    )
    assert repo.files() == {"a.txt": b"a", "b.bin": b"5"}
    assert count(hub, "PUT", "/stored") == 6 and count(hub, "POST", "/commit/main") == 5


def test_a_push_that_fails_at_any_request(hub, client):
    hub.add_repo("me/m", {"a.txt": b"a"})
    push = """
        names = {!r}
        adds = lambda: [add("README.md", b"# Card"), add("w.safetensors"), add("b.txt"), CommitOperationDelete("a.txt")]
        print(json.dumps([outcome(commit, name, *adds()) for name in names]))
    """
    assert client(push.format(["me/m"])) == [""]
    requests = [request for request in hub.requests if "me/m" in request[1]]
    assert [method for method, _ in requests] == ["POST", "POST", "PUT", "POST", "POST"]
    complete = hub.repo("me/m").files()
    assert complete == {"README.md": b"# Card", "w.safetensors": b"new", "b.txt": b"new"}
    cases = [(nth, after) for nth in range(1, len(requests) + 1) for after in (False, True)]
    repos = [hub.add_repo(f"me/m-{nth}-{after}", {"a.txt": b"a"}) for nth, after in cases]
    for repo, (nth, after) in zip(repos, cases, strict=True):
        hub.fault(f"{repo.id}\\b", 418, nth=nth, after=after)
    assert all(client(push.format([repo.id for repo in repos])))
    assert [repo.files() == complete for repo in repos] == [case == (len(requests), True) for case in cases]
    assert all(len(repo.commits) == 1 and repo.files() == {"a.txt": b"a"} for repo in repos[:-1])


def test_a_card_whose_metadata_is_no_mapping_is_refused(hub, client):
    repo = hub.add_repo("me/model", {"a.txt": b"a"})
    printed = client(r"""
        good = "---\nlicense: mit\ntags:\n- t5\n  # so\nx: {a: 1}\n---\n# Title: not metadata\n- no\n"
        cards = [good, "no metadata", "---\nlicense mit\n---\n", "---\n\n---\n"]
        print(json.dumps([outcome(commit, "me/model", add("README.md", card.encode())) for card in cards]))
    """)
    assert printed == ["", "", "ValueError", ""]
    assert [commit.files.get("README.md", b"")[:4] for commit in repo.commits] == [b"", b"---\n", b"no m", b"---\n"]


@pytest.mark.skipif(
    '"https://huggingface.co/api' in inspect.getsource(huggingface_hub.RepoCard.validate), reason="asks no other Hub"
)
def test_the_card_validates_itself_here(hub, client):
    assert (
        client(r"""
        from huggingface_hub import ModelCard
        print(json.dumps(outcome(ModelCard("---\nlicense: mit\n---\n# Title").validate)))
    """)
        == ""
    )
    assert hub.requests == [("POST", "/api/validate-yaml")]


def ask(url, method="GET", path="", body=None, **headers):
    """Send a request that the client would not send."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request(method, urlsplit(url).path + path, body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def test_ranges(hub):
    hub.add_repo("me/model", {"a.txt": b"0123456789", "w.bin": b"0123456789"})
    status, headers, _ = ask(hub.endpoint, path="/me/model/resolve/main/w.bin")
    assert status == 302 and headers["X-Linked-Size"] == "10"
    assert not headers["Location"].startswith(hub.endpoint + "/")
    for url in (f"{hub.endpoint}/me/model/resolve/main/a.txt", headers["Location"]):
        assert ask(url)[2] == b"0123456789"
        status, part, body = ask(url, Range="bytes=3-5")
        assert (status, part["Content-Range"], body) == (206, "bytes 3-5/10", b"345")
        assert ask(url, Range="bytes=8-")[2] == b"89" and ask(url, Range="bytes=8-99")[2] == b"89"
        assert ask(url, Range="bytes=10-")[0] == 416
        status, head, body = ask(url, "HEAD")
        assert (status, head["Content-Length"], body) == (200, "10", b"")
    assert ask(headers["Location"], Authorization="Bearer hf_owner")[0] == 400, "a token has no business there"


@pytest.mark.parametrize(
    "name", ["a--b", "a..b", "-a", "a.", "a.git", "a.ipynb", "a/b", "a b", "", "é", "a" * 97], ids=lambda name: name[:9]
)
def test_names_that_the_hub_does_not_allow(hub, name):
    def create(name):
        body = json.dumps({"name": name, "organization": None})
        return ask(hub.endpoint, "POST", "/api/repos/create", body, Authorization="Bearer hf_owner")[0]

    assert create(name) == 400 and not hub.repos
    assert create("a" * 96) == create("a_-1.b") == create("b") == 200


def test_a_request_cut_off_has_no_effect(hub):
    repo = hub.add_repo("me/model", {"a.txt": b"a"})
    lines = [
        {"key": "header", "value": {"summary": "ours", "description": ""}},
        {"key": "file", "value": {"path": "b.txt", "content": base64.b64encode(b"b").decode(), "encoding": "base64"}},
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    url = urlsplit(hub.endpoint)
    for missing, commits in ((1, 1), (0, 2)):
        head = "POST /api/models/me/model/commit/main HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer hf_owner\r\n"
        with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
            connection.sendall(f"{head}Content-Length: {len(body) + missing}\r\n\r\n".encode() + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        assert len(repo.commits) == commits


def test_what_was_never_uploaded_cannot_be_committed(hub):
    repo = hub.add_repo("me/model", {"a.txt": b"a"})
    lines = [
        {"key": "header", "value": {"summary": "ours", "description": ""}},
        {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    body = "\n".join(map(json.dumps, lines))
    assert (
        ask(hub.endpoint, "POST", "/api/models/me/model/commit/main", body, Authorization="Bearer hf_owner")[0] == 400
    )
    assert len(repo.commits) == 1
    assert ask(hub.endpoint, "GET", "/api/models/me/model/xet-write-token/main")[0] == 404


def test_transformers_and_peft_load_from_it(hub, client, tmp_path, save_plain_t5):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSeq2SeqLM

    folder = save_plain_t5(tmp_path / "plain")
    hub.add_folder("me/model", folder, private=True)
    torch.manual_seed(1)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(folder), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    saved = tmp_path / "adapter" / "adapter_config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"base_model_name_or_path": "me/model"}))
    hub.add_folder("me/adapter", tmp_path / "adapter")
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        tuned = model(input_ids=ids, labels=ids).loss.item()
        with model.disable_adapter():
            plain = model(input_ids=ids, labels=ids).loss.item()
    assert plain != tuned
    printed = client("""
        import torch
        from peft import AutoPeftModelForSeq2SeqLM, PeftModel
        from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer
        torch.set_num_threads(1)
        ids = torch.arange(3, 9)[None]
        base = AutoModelForSeq2SeqLM.from_pretrained("me/model").eval()
        models = base, AutoModelForSeq2SeqLM.from_pretrained("me/adapter").eval(), \\
            AutoPeftModelForSeq2SeqLM.from_pretrained("me/adapter").eval()
        with torch.no_grad():
            losses = [model(input_ids=ids, labels=ids).loss.item() for model in models]
            losses += [PeftModel.from_pretrained(base, "me/adapter").eval()(input_ids=ids, labels=ids).loss.item()]
        size = len(AutoTokenizer.from_pretrained("me/model"))
        exists = [api.file_exists("me/adapter", name) for name in ("adapter_config.json", "tokenizer_config.json")]
        print(json.dumps([AutoConfig.from_pretrained("me/model").model_type, losses, exists, size > 100]))
    """)
    assert printed == ["t5", [plain, tuned, tuned, tuned], [True, False], True]


def test_a_hub_by_hand_prints_what_a_shell_needs():
    script = Path(__file__).with_name("hub_server.py")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as server:
        lines = [server.stdout.readline() for _ in range(12)]
        assert all(line.startswith("export ") for line in lines)
        call = "from huggingface_hub import whoami; print(whoami()['name'])"
        commands = f"{''.join(lines)}{sys.executable} -c {shlex.quote(call)}"
        answer = subprocess.run(["sh", "-c", commands], capture_output=True, text=True, timeout=120)
        server.send_signal(signal.SIGINT)
        assert (answer.stdout, server.wait(30)) == ("me\n", 0), answer.stderr
