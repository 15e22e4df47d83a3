"""``python -m raypurify``: the command, where its script is not on the ``PATH``."""

from raypurify.command.main import main

if __name__ == "__main__":
    main()
