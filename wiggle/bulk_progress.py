"""What the preparation of a large corpus shows of its progress."""

import time

from tqdm import tqdm

from wiggle.bulk_journal import Limits, State
from wiggle.readers import FileSequence


class Progress:
    """Documents, tokens, MB of text a second and, where the end is known, the time left, on one line."""

    def __init__(self, files: FileSequence, limits: Limits, state: State, expected: int | None):
        self.size, self.limits, self.expected = sum(files.sizes), limits, expected
        self.start, self.told = time.monotonic(), time.monotonic()
        self.start_bytes, self.start_share = sum(state.text_bytes.values()), None
        self.bar = tqdm(bar_format="{desc}", disable=None, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, state: State, done: float) -> None:
        """Show a state. done: the bytes of the source's files that were read so far."""
        now = time.monotonic()
        if self.start_share is None:
            self.start_share = self._share(state, done)
        if now < self.told + (10 if self.bar.disable else 0.2):
            return
        self.told = now
        line = self.line(state, self._share(state, done), now - self.start)
        if self.bar.disable:  # no terminal
            print(f"encoded  {line}", flush=True)
        else:
            self.bar.set_description_str(line)

    def _share(self, state: State, done: float) -> float:
        """The share of the whole work that is done; 0 where that is unknown."""
        shares = [done / self.size if self.size else 0]
        if self.limits.max_tokens:
            shares.append(state.total_tokens / self.limits.max_tokens)
        if self.limits.max_docs:
            shares.append(state.total_documents / self.limits.max_docs)
        return min(1.0, max(shares))

    def line(self, state: State, share: float, seconds: float) -> str:
        """What is shown of a state after so many seconds."""
        speed = (sum(state.text_bytes.values()) - self.start_bytes) / 1e6 / max(seconds, 1e-9)
        of = f" of {self.expected:,}" if self.expected else ""
        line = f"{state.total_documents:,}{of} documents, {state.total_tokens:,} tokens, {speed:.1f} MB/s"
        gained = share - (self.start_share or 0)
        if share and gained > 0:
            left = seconds * (1 - share) / gained
            line += f", {share:.0%}, {left // 3600:.0f}:{left // 60 % 60:02.0f}:{left % 60:02.0f} left"
        return line
