"""Ctrl-C and its kin end a run between two micro-batches, so that nothing is lost."""

import contextlib
import os
import signal
import threading

from wiggle.distributed import any_process


class StopSignal:
    """
    A context in which the first SIGINT, SIGTERM or SIGHUP is a wish to stop, and a second one raises KeyboardInterrupt.

    name: of the signal that came, or None. talkative: whether the first signal prints at once what happens now.
    """

    def __init__(self, talkative: bool = True):
        self.talkative, self.name, self.handlers_before = talkative, None, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                    self.handlers_before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        """The handler: remember the first signal, and leave at once by the second."""
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self.talkative:
            with contextlib.suppress(OSError):  # os.write, for print may be what the signal interrupted
                os.write(2, b"\nstopping  after this micro-batch, and saving; the same signal again leaves at once\n")

    def agreed(self) -> bool:
        """Whether to stop now. All processes of the run must ask together: they stop if any of them was told to."""
        if not any_process(self.name is not None):
            return False
        self.name = self.name or "another process"
        return True

    def __exit__(self, *error):
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)
