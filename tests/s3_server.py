"""A local server of S3's protocol, `moto`, some of whose requests fail.

    python -m tests.s3_server LOG [FAULTS]

LOG gets a line for each request: method, path, status. FAULTS is the share that is answered with status 503. Prints its
address when it is ready.
"""

import random
import sys

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main(log: str, faults: str = "0") -> None:
    """Serves until it is killed."""
    store, chance, share = DomainDispatcherApplication(create_backend_app), random.Random(0), float(faults)

    def application(environment, start_response):
        def answer(status, headers, *rest):
            with open(log, "a") as file:
                file.write(f"{environment['REQUEST_METHOD']} {environment['PATH_INFO']} {status}\n")
            return start_response(status, headers, *rest)

        if chance.random() < share:
            answer("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return store(environment, answer)

    server = make_server("localhost", 0, application, threaded=True)
    print(f"http://localhost:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
