"""runs.jsonl, the file that keeps what came of each run of an experiment."""

import json
import os
from pathlib import Path


class Ledger:
    """runs.jsonl: one JSON object a line, by kind and key. A line that a crash cut short is passed over."""

    def __init__(self, path):
        self.path, self.records = Path(path), {}
        text = self.path.read_bytes() if self.path.exists() else b""
        for line in text.splitlines():
            try:
                record = json.loads(line)
                self.records[record["kind"], record["key"]] = record
            except (ValueError, TypeError, KeyError):
                print(f"warning   a damaged line of {self.path} is passed over: {line[:40]!r}")
        if text and not text.endswith(b"\n"):
            self._append(b"\n")

    def get(self, kind, key):
        return self.records.get((kind, key))

    def finished(self, run):
        """The record of a run that is done, or None. Keys that came later are at their defaults: see arms.key_of."""
        record = self.get(run.stage, run.key)
        alike = record and all(record["settings"].get(key, value) == value for key, value in run.settings.items())
        return record if alike else None

    def add(self, kind, key, **content):
        record = self.records[kind, key] = {"kind": kind, "key": key, **content}
        self._append(json.dumps(record).encode() + b"\n")

    def _append(self, line):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
