"""Templates run by nbmake write their records to a folder of their own, never over those of the book."""

import os
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Before torch is loaded, and passed on to notebook kernels: workers side by side with more threads than cores slow each
# other many times over.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

os.environ.pop("SAFEBOOK_SEEDS", None)  # of a build that is confined to some seeds

# A shell that starts the tests in the background has them ignore Ctrl-C, and so every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FOLDERS = tempfile.TemporaryDirectory(prefix="safebook-templates-")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.nodeid.split("::")[0].endswith(".ipynb"):
        os.environ["SAFEBOOK_RECORD_DIR"] = str(Path(FOLDERS.name) / item.path.stem)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    if item.nodeid.split("::")[0].endswith(".ipynb"):
        os.environ.pop("SAFEBOOK_RECORD_DIR", None)
