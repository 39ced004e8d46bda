"""A stand-in for the Dataflow service, which runs the job that Dataflow's client has translated, staged and submitted.

    python -m tests.dataflow_server FOLDER

Google's object store is `gcp-storage-emulator`, with its objects in FOLDER/store. The job as submitted is
FOLDER/job.json. Its graph is the staged one, and its workers are processes with the staged code in place of containers;
FOLDER/workers has a line for each. When both are ready it prints the addresses of the store and of the service.
"""

import http.server
import json
import os
import pathlib
import socket
import sys
import threading
import time
import zipfile

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from gcp_storage_emulator.server import create_server

BUCKET = "bucket"
WORKER = "apache_beam.runners.worker.sdk_worker_main"
WORKERS = 3
DONE, FAILED = "JOB_STATE_DONE", "JOB_STATE_FAILED"


class Service:
    """One job, from its submission to its end."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.job: dict = {}
        self.messages: list[dict] = []

    def submit(self, job: dict) -> dict:
        """Starts a job; returns it with its identifier and state."""
        (self._folder / "job.json").write_text(json.dumps(job))
        self.job = job | {"id": "job-1", "currentState": "JOB_STATE_RUNNING"}
        threading.Thread(target=self._run, daemon=True).start()
        return self.job

    def _run(self) -> None:
        try:
            for package in self.job["environment"]["workerPools"][0]["packages"]:
                if package["name"].endswith(".whl"):
                    zipfile.ZipFile(self._staged(package["location"])).extractall(self._folder / "installed")
            os.environ["PYTHONPATH"] = str(self._folder / "installed")
            os.chdir(self._folder)
            url = self.job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
            graph = beam_runner_api_pb2.Pipeline.FromString(self._staged(url).read_bytes())
            command = f"echo $$ >> {self._folder}/workers; exec {sys.executable} -m {WORKER}"
            for environment in graph.components.environments.values():
                environment.urn, environment.payload = python_urns.SUBPROCESS_SDK, command.encode()
                del environment.dependencies[:]
            runner = FnApiRunner()
            runner._num_workers = WORKERS  # which a flag sets for graphs of this process alone
            runner.run_via_runner_api(graph, PipelineOptions(["--no_auth"])).wait_until_finish()
            self.job["currentState"] = DONE
        except Exception as error:  # the service reports whatever goes wrong in a job
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            text = f"{type(error).__name__}: {error}"
            self.messages = [{"id": "m", "time": now, "messageText": text, "messageImportance": "JOB_MESSAGE_ERROR"}]
            self.job["currentState"] = FAILED

    def _staged(self, url: str) -> pathlib.Path:
        name = url.removeprefix("gs://").removeprefix("storage.googleapis.com/")
        return self._folder / "store" / ".cloudstorage" / name


def main(folder: str) -> None:
    """Serves until it is killed."""
    service = Service(pathlib.Path(folder))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self._answer(service.submit(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def do_GET(self):
            kind = self.path.split("?")[0].rsplit("/", 1)[-1]
            answers = {"messages": {"jobMessages": service.messages}, "metrics": {"metrics": []}}
            self._answer(answers.get(kind, service.job))

        def _answer(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://localhost:{port}"  # for the workers
    create_server("localhost", port, in_memory=False, data_dir=f"{folder}/store", default_bucket=BUCKET).start()
    jobs = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    print(f"{os.environ['STORAGE_EMULATOR_HOST']} http://localhost:{jobs.server_address[1]}", flush=True)
    jobs.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
