"""
A fake of the Hugging Face hub on this machine, which answers as the real one does, or fails as it is told to.

It serves one dataset, me/texts, at one revision. `faults` holds what the next downloads of a file do: 'lost' cuts the
connection in the middle, 'short' sends a truncated file as if it were whole, 429 and other numbers are HTTP's.
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

REVISION = "c" * 40
REPOSITORY = "/datasets/me/texts/resolve/"
API = "/api/datasets/me/texts"


class Hub(http.server.ThreadingHTTPServer):
    """files: {path: bytes}. faults: {path: [what each of its next downloads does]}. downloads: paths, in order."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.faults, self.downloads = files, {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()

    def handle_error(self, request, address):
        pass  # a client that is killed


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if path.startswith(REPOSITORY):
            self.send_file(path.removeprefix(REPOSITORY).partition("/")[2])
        elif path == API or path.startswith(f"{API}/revision/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.send_json({"id": "me/texts", "sha": REVISION, "private": False, "tags": [], "siblings": siblings})
        elif path.startswith(f"{API}/tree/"):
            self.send_json(self.entries(path.removeprefix(f"{API}/tree/").partition("/")[2]))
        elif path.startswith(f"{API}/paths-info/"):
            paths = urllib.parse.parse_qs(body.decode())["paths"]
            self.send_json([self.entry(name) for name in paths if name in self.server.files])
        else:
            self.send(404)

    do_HEAD = do_POST = do_GET

    def log_message(self, *args):
        pass

    def entry(self, name):
        data = self.server.files[name]
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name, "lfs": lfs}

    def entries(self, folder):
        """The files of a folder and, by name alone, its folders."""
        prefix = f"{folder}/" if folder else ""
        found = {}
        for name in self.server.files:
            if name.startswith(prefix):
                head, slash, _ = name.removeprefix(prefix).partition("/")
                directory = {"type": "directory", "oid": "0", "size": 0, "path": prefix + head}
                found[head] = directory if slash else self.entry(name)
        return list(found.values())

    def send_json(self, content):
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, name):
        if name not in self.server.files:
            self.send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION})
            return
        data, fault = self.server.files[name], None
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.server.downloads.append(name)
            faults = self.server.faults.get(name)
            fault = faults.pop(0) if faults else None
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if isinstance(fault, int):
            self.send(fault, headers={"Retry-After": "0"})
        elif fault == "lost":
            self.send(200, data, headers, sent=len(data) // 2)
            self.close_connection = True
        elif fault == "short":
            self.send(200, data[: len(data) // 2], headers)
        elif start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(206, data[start:], headers)
        else:
            self.send(200, data, headers)

    def send(self, code, body=b"", headers=None, sent=None):
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
