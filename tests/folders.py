"""What a folder holds, for tests that compare folders."""

import hashlib
import pathlib


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Path below `folder` to SHA-256 of each file in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
