"""Clean a dataset of images."""

import tyro

from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.distributed.clean import CleaningArguments, main
from raypurify.runs import Destination
from raypurify.runs.cli import run

if __name__ == "__main__":
    run(
        main,
        CleaningArguments(
            cleaning=CleaningConfig(input=tyro.MISSING, purifier=tyro.MISSING),
            destination=Destination(output=tyro.MISSING),
        ),
    )
