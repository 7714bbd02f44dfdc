"""`python -m schemas.registry`: start the registry; SIGTERM or Ctrl-C stops it."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from schemas.registry.catalog import Catalog
from schemas.registry.journal import Journal, JournalError
from schemas.registry.server import RegistryServer


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal asks to stop; 0 then, 1 with a sentence if the start is refused."""
    parser = argparse.ArgumentParser("python -m schemas.registry", description="Local schema registry.")
    parser.add_argument("--port", type=int, required=True, help="port to listen on; 0 takes a free one")
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of the durable state")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    options = parser.parse_args(arguments)
    try:
        catalog = Catalog(Journal(options.state_dir))
    except JournalError as error:
        return _refuse(str(error))
    try:
        server = RegistryServer(options.host, options.port, catalog)
    except OSError as error:
        catalog.close()
        return _refuse(
            f"{options.host}:{options.port} cannot be bound: {error.strerror}; choose another --port"
        )

    def stop(*_: object) -> None:
        # shutdown() waits for the serving loop, which is the very thread that a signal interrupts.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sys.stdout.write(
        f"registry on http://{server.server_name}:{server.server_port}, state in {options.state_dir}\n"
    )
    sys.stdout.flush()
    server.serve_forever()
    server.server_close()
    catalog.close()
    return 0


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"registry: {sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
