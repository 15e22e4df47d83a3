"""The whole path on embedded data: ``raypurify demo``."""

from raypurify.command import jobs

if __name__ == "__main__":
    jobs.demo().run()
