"""What a user sees while things run: a live bar on a terminal, else one plain line every few seconds.

Jobs of `safebook book` run as processes of their own, several at a time; then each line starts with the job's
number (`[ 5/13] pcfg-03-safety-finetuning`), and bars that would overwrite each other become such lines.
"""

import contextlib
import io
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from safebook.errors import InputError

EVERY_S = 5.0  # seconds between two plain lines of one job
LONG_S = 30.0  # and where they would say the same


def clock(seconds: float) -> str:
    """`03:07`, or `1:03:07` from an hour on."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m:02d}:{s:02d}"


def live(stream: TextIO | None = None) -> bool:
    """Whether a bar may overwrite its own line: a terminal, and no other job beside this one."""
    return (stream or sys.stderr).isatty() and os.environ.get("SAFEBOOK_JOBS", "1") == "1"


class Lines(io.TextIOBase):
    """Stands in for stderr in a job: lines pass with the job's prefix, states of a bar every few seconds."""

    def __init__(self, stream: TextIO, prefix: str, log: Path | None = None, every_s: float = EVERY_S):
        super().__init__()
        self.stream, self.prefix, self.log, self.every_s = stream, prefix, log, every_s
        self._rest, self._last = "", 0.0
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            # a bar writes "\rtext": what follows its last "\r" waits here until the next state comes
            *ended, self._rest = re.split(r"(?<=[\r\n])", self._rest + text)
            for line in ended:
                self._line(line.strip(), final=line.endswith("\n"))
        return len(text)

    def _line(self, line: str, final: bool) -> None:
        if not line:
            return
        if not final and time.monotonic() - self._last < self.every_s:
            return
        self._last = time.monotonic()
        self.stream.write(f"{self.prefix}  {line}\n")
        self.stream.flush()
        _append(self.log, line + "\n")

    def flush(self) -> None:
        self.stream.flush()


class Cells:
    """Progress over a notebook's cells: `with Cells(name) as bar: bar.start(total)`, then `bar.at(i)`, i from 1."""

    def __init__(self, name: str, show: bool = True):
        self.name, self.total, self.show = name, 0, show
        self._start, self._number, self._shown = time.monotonic(), 0, (0, 0.0)
        self._bar, self._stop, self._lock = None, threading.Event(), threading.Lock()

    def __enter__(self) -> "Cells":
        return self

    def start(self, total: int) -> None:
        """The notebook, of this many cells, starts."""
        self.total = total
        if not self.show:
            return
        if live():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self.name, unit="cell", file=sys.stderr)
        else:
            threading.Thread(target=self._beat, daemon=True).start()

    def at(self, number: int) -> None:
        """Cell `number` of the notebook starts."""
        self._number = number
        if self._bar is not None:
            self._bar.update(number - 1 - self._bar.n)
        elif self.show and number in (1, self.total):
            self._line()

    def _beat(self) -> None:
        """A line when another cell is at work than a few seconds ago, and at times while one takes long."""
        while not self._stop.wait(EVERY_S):
            number, when = self._shown
            if self._number != number or time.monotonic() - when > LONG_S:
                self._line()

    def _line(self) -> None:
        with self._lock:
            self._shown = (self._number, time.monotonic())
            name = f"{self.name}  " if self.name else ""
            spent = clock(time.monotonic() - self._start)
            print(f"{name}cell {self._number}/{self.total}  {spent}", file=sys.stderr, flush=True)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stop.set()
        if self._bar is not None:
            self._bar.update(self.total - self._bar.n if kind is None else 0)
            self._bar.close()


def _append(log: Path | None, text: str) -> None:
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(text)


@contextlib.contextmanager
def job(name: str, log: Path | None = None) -> Iterator[None]:
    """Around the work of one job of the graph: its number and name before each line, its errors in the log.

    An error other than bad input ends the process with exit code 1, its traceback in the log.
    """
    stop_with_parent()
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")
    prefix, stderr = job_prefix(name), sys.stderr
    bars = live()
    if not bars:
        sys.stderr = Lines(stderr, prefix, log)
    try:
        print(prefix if bars else "starts", file=sys.stderr, flush=True)
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        _append(log, traceback.format_exc())
        where = f", see {log}" if log else ""
        print(f"FAILED: {type(error).__name__}: {error}{where}", file=sys.stderr)
        if log is None:
            traceback.print_exc(file=stderr)
        raise SystemExit(1) from None
    finally:
        sys.stderr = stderr


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows of text in aligned columns, the last column as long as it is."""
    lines = [[str(part) for part in line] for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    lines.insert(1, ["-" * len(part) for part in lines[0]])
    return "\n".join(
        "  ".join([*(part.ljust(w) for part, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def stop_with_parent() -> None:
    """End this process when the `safebook book` that started it is gone (kill -9) or wants it to stop (Ctrl-C).

    SAFEBOOK_PARENT is `host:pid`; on another host (a cluster's node) there is nothing to watch. SAFEBOOK_COUNTER
    is a file that the parent deletes to stop its jobs.
    """
    host, _, pid = os.environ.get("SAFEBOOK_PARENT", "").rpartition(":")
    counter = os.environ.get("SAFEBOOK_COUNTER")
    if host != socket.gethostname() or not pid.isdigit() or not counter:
        return
    import psutil

    def wanted() -> bool:
        try:
            alive = psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        return alive and Path(counter).exists()

    def watch() -> None:
        while wanted():
            time.sleep(0.5)
        os.kill(
            os.getpid(), signal.SIGINT
        )  # as Ctrl-C: kernels are shut down, what is half done is marked so
        time.sleep(10)
        os._exit(130)

    if not wanted():
        raise SystemExit(130)
    threading.Thread(target=watch, daemon=True, name="stop-with-parent").start()


def job_prefix(name: str) -> str:
    """`[ 5/13] name` for the next job of a `safebook book`, `name` anywhere else.

    SAFEBOOK_TOTAL is the number of jobs, SAFEBOOK_COUNTER a file that grows by one byte per job started.
    """
    total, counter = os.environ.get("SAFEBOOK_TOTAL", ""), os.environ.get("SAFEBOOK_COUNTER")
    if not total.isdigit() or not counter:
        return name
    with Path(counter).open("ab", buffering=0) as file:  # appending: two jobs never get the same number
        file.write(b".")
        number = file.tell()
    return f"[{number:{len(total)}d}/{total}] {name}"
