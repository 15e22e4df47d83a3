"""Clean a dataset of images: ``raypurify clean``."""

from raypurify.command import jobs

if __name__ == "__main__":
    jobs.clean().run()
