"""Ctrl-C and its kin end a run after its step, so that nothing is lost."""

import signal
import threading

import torch

from wiggle.distributed import mean_over_processes, rank_and_world


class StopSignal:
    """
    A context in which the first SIGINT, SIGTERM or SIGHUP is a wish to stop, and a second one raises KeyboardInterrupt.

    name: of the signal that came, or None.
    """

    def __enter__(self):
        self.name, self.handlers_before = None, {}
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

    def agreed(self, ask_others: bool) -> bool:
        """
        Whether to stop after this step.

        Several processes must stop at the same step, so they ask each other, all at the steps whose `ask_others` is
        True, and stop if any of them was told to. One process needs to ask nobody.
        """
        if rank_and_world()[1] == 1:
            return self.name is not None
        if not ask_others:
            return False
        if mean_over_processes(torch.tensor(float(self.name is not None))).item() > 0:
            self.name = self.name or "another process"
            return True
        return False

    def __exit__(self, *error):
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)
