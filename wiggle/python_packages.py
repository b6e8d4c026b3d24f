"""
The corpus python_packages: Python sources out of wheels of PyPI, for machines that reach nothing else.

The wheels are pinned by version and SHA-256, so the corpus is the same everywhere. Nothing is installed or unpacked to
disk. Files that say that a program generated them are left out, and so is a file whose text came before.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wiggle.bulk_writer import BulkSource
from wiggle.download import pip_download
from wiggle.errors import UserError
from wiggle.files import atomic_write
from wiggle.readers import FileSequence


class Wheel(NamedTuple):
    """A wheel for every platform."""

    package: str
    version: str
    size: int  # bytes
    licence: str
    sha256: str


# A line for each: package, version, bytes, licence (SPDX, after the wheel's METADATA), SHA-256.
TABLE = """
transformers 5.24.0 13549890 Apache-2.0 ff5ebedf9359f94bb63772b6380eba6e7104d010cbbb2cb82c788817ea7486f6
diffusers 0.42.1 6355908 Apache-2.0 9154faa704ce00e0b77f568e0d64786064368528aab5fc14eeea92f87d788014
sympy 1.14.0 6299353 BSD-3-Clause e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5
pennylane 0.45.1 5414360 Apache-2.0 b8cc7f590c43281b6e35b3a35707e9583c6b7babeb31dcf6f1cbde32a754ab93
sktime 1.2.0 8201107 BSD-3-Clause dbffc6731d2d683b668dceb5e2bbc5804bebc8446b4c580803a281684d90e4ae
mlflow 3.18.0 12614865 Apache-2.0 be7d84ba0d0b12392f5b53260cdb3e6d7b7ef4b80c29da90a89b5a1f6db7102f
jax 0.12.0.1 3466959 Apache-2.0 e9dfd256ba090259b10f97f0755d4fc92535b8cb38c0a40df6488a8c8a7dd8ae
Twisted 26.10.0 3251703 MIT 3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8
keras 3.15.1 2398595 Apache-2.0 836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20
yt-dlp 2026.10.26 3186201 Unlicense a05c5b5d8562f7e8a62f5334348b406af4930d56d3a65f8021d14af0e22339ae
langchain-community 0.4.2 2364406 MIT 84dd8c5122532394d5b6849a5fc9995ef28e4f77227daeb09f24b3d942e9e466
dagster 1.13.29 2042111 Apache-2.0 65f7bf2f52c0c1219cb1ca63a1f0f95a1af83d12e94ebec7598e47ee49889859
mne 1.13.2 7668762 BSD-3-Clause 36bbdd9fdc68431309a75e9dc6331b9de085cb6836688ac50b7b89f141a83cc3
cirq-core 1.7.0 2116400 Apache-2.0 9d2e9610b06e2b2b2195184f44c0df4e94f31485831f8e1c6a96c858b7897bce
networkx 3.7 2142205 BSD-3-Clause e3fd2c13a7814cee3746340d8d7f8598a67f16a58bf47fb7f8793fab6efca1b0
monai 1.6.1 1677458 Apache-2.0 dbd3b1dd309e752e0477ed73fde03b92f80ac74bfb8a8c4260f018b5d6ab2b0b
dask 2026.8.0 1492182 BSD-3-Clause ccc0c83a189b0398602435189771d28dad7b5773b6089bb8dce14ae732dd782c
Django 6.1.3 8424610 BSD-3-Clause a0530e3fdac55d34ccc5893c36f6c57d7a7083064f3d414537e51473648b3290
nltk 3.10.4 1722994 Apache-2.0 769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51
timm 1.0.31 2798714 Apache-2.0 5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
WHEELS = [Wheel(package, version, int(size), *rest) for package, version, size, *rest in ROWS]


def open_python_packages(begun: dict | None, downloads: Path) -> BulkSource:
    """The corpus as it will be read. Each wheel is kept in `downloads` until the corpus is finished."""
    names = [f"{wheel.package}-{wheel.version}.whl" for wheel in WHEELS]
    files = PackageFiles(names, downloads)
    identity = {"files": [[name, wheel.sha256] for name, wheel in zip(names, WHEELS, strict=True)]}
    licences = {f"{wheel.package} {wheel.version}": wheel.licence for wheel in WHEELS}
    return BulkSource(f"the Python files of {len(WHEELS)} wheels of PyPI", identity, files, {"licences": licences})


class PackageFiles(FileSequence):
    """The wheels, each downloaded when its turn comes. They replay: what a duplicate is depends on all before it."""

    def __init__(self, names: list[str], downloads: Path):
        super().__init__(names, [wheel.size for wheel in WHEELS], fetch=self.fetch_wheel, replays=True)
        self.downloads = downloads

    @contextlib.contextmanager
    def fetch_wheel(self, number: int) -> Iterator[Path]:
        """The path of wheel `number`, downloaded unless it is there. Raises UserError where that fails."""
        wheel, path = WHEELS[number], self.downloads / self.names[number]
        if not (path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256):
            try:
                data = pip_download(f"{wheel.package}=={wheel.version}", wheel.sha256, "only-binary")
            except UserError as error:
                raise UserError(f"{error}; run the same command again, which goes on where this stopped") from None
            with atomic_write(path) as file:
                file.write(data)
        yield path
