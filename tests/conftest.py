"""Fixtures of several folders, and what a failed test tells. That this file is here puts the folder on the path."""

import os
import subprocess
from collections.abc import Generator

import pytest
from servers import s3 as s3
from small_networks import small_classifier as small_classifier
from small_networks import small_purifier as small_purifier

# A process of a test that is killed by a signal of its own tells where.
os.environ.setdefault("PYTHONFAULTHANDLER", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a command printed that a test wanted to succeed, and that failed."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, subprocess.CalledProcessError):
        for name, printed in (("stdout", error.stdout), ("stderr", error.stderr)):
            text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
            report.sections.append((f"{name} of the failed command", text or ""))
    return report
