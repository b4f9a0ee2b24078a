"""What a user sees: numbered lines, throttled bars, aligned tables."""

import io
import sys
import time

import pytest

from safebook import terminal


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEBOOK_TOTAL", "13")
    monkeypatch.setenv("SAFEBOOK_COUNTER", str(tmp_path / "jobs"))
    return io.StringIO()


def test_jobs_are_numbered_in_the_order_they_start(numbered):
    assert [terminal.job_prefix("a"), terminal.job_prefix("b")] == ["[ 1/13] a", "[ 2/13] b"]


def test_a_job_alone_has_no_number(monkeypatch):
    monkeypatch.delenv("SAFEBOOK_TOTAL", raising=False)
    assert terminal.job_prefix("a") == "a"


def test_every_line_of_a_job_carries_its_name_and_bars_are_throttled(numbered, tmp_path, monkeypatch):
    from tqdm import tqdm

    monkeypatch.setattr(sys, "stderr", numbered)
    log = tmp_path / "logs" / "model.log"
    with terminal.job("model", log):
        for _ in tqdm(range(1000), desc="train", mininterval=0):
            pass
        print("two\nlines", file=sys.stderr)
    assert sys.stderr is numbered
    lines = numbered.getvalue().splitlines()
    assert all(line.startswith("[ 1/13] model  ") for line in lines) and "\r" not in numbered.getvalue()
    assert lines[-2:] == ["[ 1/13] model  two", "[ 1/13] model  lines"]
    assert len(lines) <= 6  # not a thousand
    assert log.read_text().splitlines()[-2:] == ["two", "lines"]


def test_an_error_ends_the_job_with_1_and_its_traceback_in_the_log(numbered, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", numbered)
    log = tmp_path / "model.log"
    with pytest.raises(SystemExit) as stop, terminal.job("model", log):
        raise RuntimeError("planted")
    assert (
        stop.value.code == 1 and "Traceback" in log.read_text() and "RuntimeError: planted" in log.read_text()
    )
    assert "FAILED: RuntimeError: planted, see" in numbered.getvalue()


def test_cells_show_the_first_the_last_and_what_takes_long(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(terminal, "EVERY_S", 0.05)
    monkeypatch.setattr(terminal, "LONG_S", 0.2)
    with terminal.Cells("[ 5/13] pcfg-03") as bar:
        bar.start(15)
        for number in range(1, 16):
            bar.at(number)
            time.sleep(0.5 if number == 7 else 0)
    lines = sys.stderr.getvalue().splitlines()
    assert (
        lines[0] == "[ 5/13] pcfg-03  cell 1/15  00:00" and lines[-1] == "[ 5/13] pcfg-03  cell 15/15  00:00"
    )
    assert 2 <= sum("cell 7/15" in line for line in lines) <= 4
    assert 3 <= len(lines) <= 8


def test_clock_and_table():
    assert [terminal.clock(s) for s in (0, 59.9, 187, 3787)] == ["00:00", "00:59", "03:07", "1:03:07"]
    assert terminal.table(("a", "bcd"), [("long", 1)]) == "a     bcd\n-     ---\nlong  1"
