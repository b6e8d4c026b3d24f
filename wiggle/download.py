"""Files from the network, each checked against the SHA-256 that is expected of it."""

import hashlib
import http.client
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from wiggle.errors import UserError
from wiggle.files import read_bytes


def pip_download(requirement: str, sha256: str, kind: str) -> bytes:
    """
    A requirement 'name==version' -> the bytes of its file on PyPI, or wherever pip looks. Nothing is installed.

    kind: 'only-binary' for a wheel, 'no-binary' for a source package, whose set-up script pip runs: hence the hash.
    Raises UserError with pip's own reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        listing, files = Path(folder, "requirements.txt"), Path(folder, "files")
        listing.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--retries=2", "--no-deps", f"--{kind}={requirement.split('==')[0]}", "--require-hashes"]
        command += ["-r", str(listing), "-d", str(files)]
        if kind == "only-binary":  # read, not run: a wheel for newer versions of Python serves as well
            command.append("--ignore-requires-python")
        try:
            subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
            reason = (said or str(error)).splitlines()[-1]
            raise UserError(f"pip: {reason.removeprefix('ERROR: ')}") from None
        return next(files.iterdir()).read_bytes()


def obtain(what: str, download: Callable[[], bytes], sha256: str, input: str | None, instead: str = "") -> bytes:
    """
    The bytes of a source file, from the path `input` or else from download(); either way they must have the SHA-256.

    what: the source's name in messages. instead: what else the user could do, for the end of an error's sentence.
    Raises UserError where there is no such file, or another one.
    """
    if input is None:
        print(f"fetching {what}", flush=True)
        try:
            data = download()
        except (UserError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{what} cannot be fetched ({reason}): give its file with --input=FILE{instead}") from None
    else:
        data = read_bytes(input)
    for version in (data, data.replace(b"\r\n", b"\n")):  # git may have changed a text's line ends on Windows
        if hashlib.sha256(version).hexdigest() == sha256:
            return version
    raise UserError(f"{input or 'the download'} is not {what}: its SHA-256 differs; other text goes by its own path")
