"""Compare the defenses of other papers on one bench: ``raypurify defenses``."""

from raypurify.command import jobs

if __name__ == "__main__":
    jobs.defenses().run()
