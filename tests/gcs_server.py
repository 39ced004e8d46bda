"""A local object store that speaks what TensorFlow's client for `gs://` asks of Google's, over TLS.

    python -m tests.gcs_server FOLDER CERTIFICATE KEY ADDRESS LOG [FAULTS]

An object NAME of a bucket is the file FOLDER/BUCKET/NAME with its name quoted. LOG gets a JSON line for each request:
client, method, path, range, status, bytes, fault. FAULTS is the share of requests that go wrong: with status 503, with
a response that is cut off, or with an upload of which only a part arrives.
"""

import http.server
import json
import os
import pathlib
import random
import re
import ssl
import subprocess
import sys
import threading
import urllib.parse
import uuid

from tests import namespaces

HOSTS = ("storage.googleapis.com", "www.googleapis.com")
PRIVATE = "private"  # a bucket that answers 403
_PAGE = 5  # names in a page of a listing: few, so that there are several


def certify(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Makes a certificate for Google's names that is its own authority; returns the paths of certificate and key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=gcs", "-addext", f"subjectAltName={names}", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def serve(network: namespaces.Network, folder: pathlib.Path, faults: float = 0.0) -> dict[str, str]:
    """Serves the buckets of `folder`/store, with a log `folder`/log, at the first host of a network.

    Returns:
      The environment in which TensorFlow, on any host of the network, takes it for Google's.
    """
    host, (certificate, key) = network.hosts[0], certify(folder)
    network.name(dict.fromkeys(HOSTS, host), folder)
    command = [sys.executable, "-m", "tests.gcs_server", folder / "store", certificate, key, host.address]
    server = host.start([*command, folder / "log", faults], stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "ready\n"
    return {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
        "CURL_CA_BUNDLE": str(certificate),
        "NO_GCE_CHECK": "true",  # nobody asks who the client is
        "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "10000",
        "GCS_RETRY_CONFIG_MAX_DELAY_TIME_US": "100000",
    }


def requests(folder: pathlib.Path) -> list[dict]:
    """The log that `serve` writes."""
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def object_path(folder: pathlib.Path, bucket: str, name: str) -> pathlib.Path:
    """Where an object is stored."""
    return folder / bucket / urllib.parse.quote(name, safe="")


def upload(source: pathlib.Path, folder: pathlib.Path, bucket: str, prefix: str) -> None:
    """Copies the files under `source` into a bucket, as objects PREFIX/RELATIVE PATH."""
    for path in source.rglob("*"):
        if path.is_file():
            target = object_path(folder, bucket, f"{prefix}/{path.relative_to(source)}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def download(folder: pathlib.Path, bucket: str, prefix: str, target: pathlib.Path) -> None:
    """Copies the objects PREFIX/NAME of a bucket into files `target`/NAME."""
    for path in (folder / bucket).iterdir():
        name = urllib.parse.unquote(path.name)
        if name.startswith(f"{prefix}/") and not name.endswith("/"):
            place = target / name.removeprefix(f"{prefix}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


class Store(http.server.ThreadingHTTPServer):
    """Serves the buckets in `folder`."""

    request_queue_size = 128

    def __init__(self, folder: str, certificate: str, key: str, address: str, log: str, faults: str = "0"):
        super().__init__((address, 443), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        # The handshake belongs into the request's own thread.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.folder = pathlib.Path(folder)
        self.uploads: dict[str, tuple[pathlib.Path, int, bytes]] = {}  # target, size, what has arrived
        self._log, self._lock = pathlib.Path(log), threading.Lock()
        self._faults, self._random = float(faults), random.Random(0)

    def next_fault(self) -> str:
        """What shall go wrong with the next request: '' for nothing, 'refused' or 'cut'."""
        with self._lock:
            return self._random.choice(["refused", "cut"]) if self._random.random() < self._faults else ""

    def log(self, **fields: object) -> None:
        """Writes a line into the log."""
        with self._lock, open(self._log, "a") as file:
            print(json.dumps(fields), file=file)

    def handle_error(self, request, client_address):
        """Clients that are killed are not worth a word."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_):
        """The store has a log of its own."""

    def _handle(self):
        self._body = self._read_body()
        self._fault = self.server.next_fault()
        url = urllib.parse.urlsplit(self.path)
        self._query = dict(urllib.parse.parse_qsl(url.query))
        if self._fault == "refused":
            self._answer(503)
        elif PRIVATE in url.path.split("/"):
            self._answer(403, {"error": {"code": 403, "message": "no access to the bucket"}})
        elif match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", url.path):
            self._upload(match[1])
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", url.path):
            self._rewrite(self._object(match[1], match[2]), self._object(match[3], match[4]))
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", url.path):
            self._metadata(self._object(match[1], match[2]))
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", url.path):
            self._list(self.server.folder / match[1])
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)", url.path):
            self._answer(200 if (self.server.folder / match[1]).is_dir() else 404, {"name": match[1]})
        elif self.command == "GET" and (match := re.fullmatch(r"/([^/]+)/(.+)", url.path)):
            self._read(self._object(match[1], match[2]))
        else:
            self._answer(400)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _object(self, bucket: str, name: str) -> pathlib.Path:
        return object_path(self.server.folder, bucket, urllib.parse.unquote(name))

    def _read_body(self) -> bytes:
        """What arrives of the body, which may be less than the client announced."""
        if self.headers.get("Transfer-Encoding") != "chunked":  # which counts, also beside a Content-Length
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: dict | bytes = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.server.log(
            client=self.client_address[0],
            method=self.command,
            path=urllib.parse.unquote(self.path),
            range=self.headers.get("Range"),
            status=status,
            bytes=len(body),
            fault=self._fault,
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self._fault == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)

    def _read(self, path: pathlib.Path) -> None:
        """An object's bytes in a range."""
        if not path.exists():
            return self._answer(404)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        with open(path, "rb") as file:
            file.seek(first)
            data = file.read(last - first + 1)
        return self._answer(206 if data else 416, data)

    def _metadata(self, path: pathlib.Path) -> None:
        """Size and generation of an object, or its end."""
        if not path.exists():
            return self._answer(404)
        if self.command == "DELETE":
            path.unlink()
            return self._answer(204)
        facts = path.stat()
        updated = "2000-01-01T00:00:00.000Z"
        return self._answer(200, {"size": str(facts.st_size), "generation": str(facts.st_mtime_ns), "updated": updated})

    def _list(self, bucket: pathlib.Path) -> None:
        """Names that begin with a prefix; those behind a delimiter are shortened to it."""
        if not bucket.is_dir():
            return self._answer(404)
        prefix, delimiter = self._query.get("prefix", ""), self._query.get("delimiter")
        names = sorted(urllib.parse.unquote(path.name) for path in bucket.iterdir() if ".partial-" not in path.suffix)
        shortened = set()
        for name in (name for name in names if name.startswith(prefix)):
            head, found, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
            shortened.add(prefix + head + found if found else name)
        page = sorted(name for name in shortened if name > self._query.get("pageToken", ""))
        limit = min(_PAGE, int(self._query.get("maxResults", _PAGE)))
        page, more = page[:limit], len(page) > limit
        is_prefix = {name: bool(delimiter) and name != prefix and name.endswith(delimiter) for name in page}
        answer = {
            "items": [{"name": name} for name in page if not is_prefix[name]],
            "prefixes": [name for name in page if is_prefix[name]],
            **({"nextPageToken": page[-1]} if more else {}),
        }
        return self._answer(200, {name: value for name, value in answer.items() if value})

    def _rewrite(self, source: pathlib.Path, target: pathlib.Path) -> None:
        """A copy."""
        if not source.exists():
            return self._answer(404)
        self._put(target, source.read_bytes())
        return self._answer(200, {"done": True})

    def _put(self, path: pathlib.Path, data: bytes) -> None:
        """Whole or not at all, as in an object store."""
        partial = path.parent / f"x.partial-{uuid.uuid4().hex}"
        partial.write_bytes(data)
        os.replace(partial, path)

    def _upload(self, bucket: str) -> None:
        """An upload in one request, or the beginning or a part of one in several."""
        if self.command == "POST":
            target = object_path(self.server.folder, bucket, self._query["name"])
            if not target.parent.is_dir():
                return self._answer(404)
            if self._query["uploadType"] == "media":
                if self._query.get("ifGenerationMatch") == "0" and target.exists():
                    return self._answer(412)
                self._put(target, self._body)
                return self._answer(200, {"name": self._query["name"]})
            number = uuid.uuid4().hex
            self.server.uploads[number] = target, int(self.headers["X-Upload-Content-Length"]), b""
            location = f"https://{HOSTS[1]}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
            return self._answer(200, Location=location)
        return self._continue_upload(self._query["upload_id"])

    def _continue_upload(self, number: str) -> None:
        if number not in self.server.uploads:
            return self._answer(404)
        target, size, arrived = self.server.uploads[number]
        body, self._fault, cut = self._body, "", self._fault == "cut"
        if cut:
            body = body[: len(body) // 2]
        if match := re.fullmatch(r"bytes (\d+)-\d+/\d+", self.headers.get("Content-Range", "")):
            arrived = arrived[: int(match[1])] + body
        self.server.uploads[number] = target, size, arrived
        if len(arrived) == size:
            self._put(target, arrived)
            return self._answer(200, {"size": str(size)})
        if cut:
            return self._answer(503)
        known = {"Range": f"bytes=0-{len(arrived) - 1}"} if arrived else {}
        return self._answer(308, **known)


if __name__ == "__main__":
    store = Store(*sys.argv[1:])
    print("ready", flush=True)
    store.serve_forever()
