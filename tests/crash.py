"""
Runs train.py, kills it at random moments and resumes it until it is through. Used by test_crash.py; needs os.fork.

    python tests/crash.py KILL 1 SEED OUT_DIR --key=value ...      SIGKILL; 1 process
    python tests/crash.py TERM 2 SEED OUT_DIR --key=value ...      SIGTERM; 2 processes, started as by torchrun
    python tests/crash.py none 1 SEED OUT_DIR --key=value ...      let it run through

This process imports torch once and computes nothing; each life of the run is forked from it. Prints a JSON object.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch._dynamo  # noqa: F401 - an optimizer imports it, which takes longer than a life of the run

import train


def start(argv, rank, world, port, log):
    """Fork a process that trains -> its id."""
    if pid := os.fork():
        return pid
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        train.main(argv)
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stdout.flush()
        os._exit(code)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def half_written(out_dir):
    return any(Path(out_dir).glob("*.tmp"))


def live(argv, out_dir, world, number, draw):
    """
    One life of the run -> (exit codes, whether it was killed by `number`, whether that was inside a save).

    It is killed within its start, or after some steps: at any moment, or once a file is being written.
    """
    port, logs = free_port(), [Path(f"{out_dir}.{rank}.log") for rank in range(world)]
    for log in logs:
        log.write_bytes(b"")
    running = {start(argv, rank, world, port, log): rank for rank, log in enumerate(logs)}
    steps = draw.choice([0, *range(2, 14)])
    in_save = steps and draw.random() < 0.5
    delay = draw.uniform(0, 0.004 if steps else 0.4)
    codes, moment, sent = {}, None, number is None
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[running.pop(pid)] = code = os.waitstatus_to_exitcode(status)
            if code not in (0, 128 + signal.SIGTERM):
                for other in running:  # as torchrun does where one process fails
                    os.kill(other, signal.SIGKILL)
        elif moment is None and logs[0].read_bytes().count(b"loss") >= steps and (not in_save or half_written(out_dir)):
            moment = time.monotonic() + delay
        elif not sent and moment is not None and time.monotonic() >= moment:
            for target in draw.sample(sorted(running), len(running)):
                os.kill(target, number)
            sent = True
        else:
            time.sleep(0.0003)
    killed = number is not None and sent and any(codes.values())
    return codes, killed, killed and number == signal.SIGKILL and half_written(out_dir)


def main(what, world, seed, out_dir, *argv):
    number = None if what == "none" else getattr(signal, f"SIG{what}")
    draw, found = random.Random(int(seed)), {"lives": 0, "kills": 0, "kills_inside_a_save": 0}
    while True:
        resume = any(Path(out_dir, name).exists() for name in ("ckpt.pt", "ckpt.prev.pt"))
        extra = ["--init_from=resume"] if resume else []
        codes, killed, inside = live([*argv, f"--out_dir={out_dir}", *extra], out_dir, int(world), number, draw)
        found["lives"] += 1
        found["kills"] += killed
        found["kills_inside_a_save"] += inside
        if not any(codes.values()):
            print(json.dumps(found))
            return
        if not killed:
            sys.exit(f"exit codes {codes} of a life that was not killed: {Path(f'{out_dir}.0.log').read_text()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
