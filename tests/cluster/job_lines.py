"""Command lines of jobs, as they stand in files: read by the parsers of the jobs themselves."""

import runpy
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import patch

from raypurify.command.jobs import CommandLine
from raypurify.runs import cli

ROOT = Path(__file__).parents[2]
INSTALLED = "/opt/raypurify/"
"""Where cluster/Dockerfile puts the scripts."""


def parsed(line: str) -> Any:
    """The arguments of a line ``python jobs/NAME.py FLAGS``.

    Raises:
        SystemExit: an unknown flag, or a value of another type.
        ValueError: values that the job refuses.
    """
    python, script, *flags = shlex.split(line)
    assert python == "python"
    arguments = []
    with patch.object(CommandLine, "run", lambda job: arguments.append(cli.parse(job.default, flags))):
        runpy.run_path(str(ROOT / script.removeprefix(INSTALLED)), run_name="__main__")
    (found,) = arguments
    return found
