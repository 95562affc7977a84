"""Google's object store, as far as a run needs it, in memory on the loopback: one bucket, its JSON API.

What the emulators on PyPI leave out is here: a write, a read or a removal that is asked for only of some generation
(ifGenerationMatch, 0 for none) is refused of any other, and an object is seen whole or not at all.
"""

import base64
import hashlib
import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

OBJECTS = "/storage/v1/b/bucket/o"
PAGE = 50  # objects of a listing, at most


class Store(ThreadingHTTPServer):
    """The server: objects are {name: (content, generation)}."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.asked: list[tuple[str, str]] = []  # (method, path and query) of every request
        self.generations, self.uploads, self.lock = itertools.count(1), {}, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # of a client that asks in two ways at once, and hangs up on the slower

    def about(self, name: str) -> dict:
        content, generation = self.objects[name]
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        now = "2030-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(content)), "md5Hash": digest,
            "generation": str(generation), "metageneration": "1", "updated": now, "timeCreated": now,
        }  # fmt: skip

    def listing(self, query: dict[str, str]) -> dict:
        prefix, delimiter, items, folders = query.get("prefix", ""), query.get("delimiter"), [], []
        for name in sorted(name for name in self.objects if name.startswith(prefix)):
            inside, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if not cut:
                items.append(self.about(name))
            elif (folder := prefix + inside + cut) not in folders:
                folders.append(folder)
        start = int(query.get("pageToken") or 0)
        answer = {"kind": "storage#objects", "items": items[start : start + PAGE]}
        answer |= {"prefixes": folders} if not start else {}
        return answer | ({"nextPageToken": str(start + PAGE)} if len(items) > start + PAGE else {})


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *arguments):
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: an answer is two writes

    def handle_one(self):
        parts = urlsplit(self.path)
        self.server.asked.append((self.command, unquote(self.path)))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = parts.path.removeprefix("/download").removeprefix("/upload")
        name = unquote(path.removeprefix(OBJECTS).removeprefix("/"))
        if not path.startswith(OBJECTS):
            return self.answer(404 if "/b/bucket" not in path else 200, {"name": "bucket", "kind": "storage#bucket"})
        with self.server.lock:
            if self.command == "GET" and not name:
                return self.answer(200, self.server.listing(query))
            if self.command in ("POST", "PUT"):
                return self.upload(query, body)
            return self.found(name, query)

    do_GET = do_POST = do_PUT = do_DELETE = handle_one

    def refused(self, name: str, query: dict[str, str]) -> bool:
        at = self.server.objects.get(name, (b"", 0))[1]
        return query.get("ifGenerationMatch", str(at)) != str(at)

    def found(self, name: str, query: dict[str, str]) -> None:
        if name not in self.server.objects:
            return self.answer(404, {"error": {"code": 404, "message": f"No such object: {name}"}})
        content, generation = self.server.objects[name]
        if self.refused(name, query):
            return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        if self.command == "DELETE":
            del self.server.objects[name]
            return self.answer(204)
        if query.get("alt") != "media":
            return self.answer(200, self.server.about(name))
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        headers, status = {"x-goog-generation": str(generation)}, 200
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            first, total = int(first), len(content)
            content, status = content[first : int(last) + 1 if last else None], 206 if first < total else 416
            headers |= {"Content-Range": f"bytes {first}-{first + len(content) - 1}/{total}"}
        self.answer(status, content, headers)

    def upload(self, query: dict[str, str], body: bytes) -> None:
        kind, name = query.get("uploadType"), query.get("name", "")
        if kind == "resumable" and "upload_id" not in query:
            number = str(len(self.server.uploads))
            self.server.uploads[number] = [json.loads(body or b"{}").get("name", name), query, b""]
            where = f"{self.server.url}/upload{OBJECTS}?uploadType=resumable&upload_id={number}"
            return self.answer(200, {}, {"Location": where})
        if kind == "resumable":
            upload = self.server.uploads[query["upload_id"]]
            upload[2] += body
            if self.headers["Content-Range"].endswith("/*"):
                return self.answer(308, b"", {"Range": f"bytes=0-{len(upload[2]) - 1}"})
            name, query, body = upload
        elif kind == "multipart":
            _, about, content = body.split(b"--==0==", 2)
            name = json.loads(about.partition(b"\n\n")[2])["name"]
            body = content.partition(b"\n\n")[2].removesuffix(b"\n--==0==--")
        if self.refused(name, query):
            return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        self.server.objects[name] = body, next(self.server.generations)
        self.answer(200, self.server.about(name))

    def answer(self, status: int, content: dict | bytes = b"", headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        if isinstance(content, dict):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)
