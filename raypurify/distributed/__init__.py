"""The only code that imports Ray: readers, actors, the evaluation pipeline and the trainer."""
