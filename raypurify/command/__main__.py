"""``python -m raypurify.command``: the command, where its script is not on the ``PATH``."""

from raypurify.command.main import main

if __name__ == "__main__":
    main()
