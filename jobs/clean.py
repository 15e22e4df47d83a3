"""Clean a dataset of images."""

import tyro

from raypurify.cleaning.config import CleaningConfig
from raypurify.cli import run
from raypurify.distributed.clean import CleaningArguments, main
from raypurify.runs import Destination

if __name__ == "__main__":
    run(
        main,
        CleaningArguments(
            cleaning=CleaningConfig(input=tyro.MISSING, purifier=tyro.MISSING),
            destination=Destination(output=tyro.MISSING),
        ),
    )
