"""What is said where a library of networks cannot be imported."""

from __future__ import annotations


def unavailable(name: str, error: BaseException) -> ValueError:
    """The error that is raised.

    Args:
        name: of the extra that installs the library.
        error: what its import raised.
    """
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any("torchvision::" in str(cause) for cause in causes):
        # It registers operators that a build for another torch lacks.
        return ValueError(
            f"{name} cannot be imported: {causes[-1]}. Its torchvision was built for another torch; install the two "
            "together, from one index: https://pytorch.org/get-started"
        )
    return ValueError(f"this network needs the extra {name} ({error}): pip install 'raypurify[{name}]'")
