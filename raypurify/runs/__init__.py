"""A run on its output: identity, attempts, lease, tables, flags and progress.

``run`` (its names can be imported from here) opens an output, ``lease`` keeps others off it, ``schema`` has the columns
of every table, ``cli`` flags and signals, ``failures`` exit codes and what is said of errors, ``fields`` the types of a
configuration's fields, ``log`` what a job prints, ``progress`` a bar, ``tally`` what an attempt has done, ``stages``
what its seconds went into, ``status`` how far a run is.
"""

from raypurify.runs.failures import FailedError, StoppedError
from raypurify.runs.run import (
    Destination,
    Run,
    check_lasting,
    hold,
    identity_of,
    machine,
    open_run,
)
