"""The name by which batches of all versions send their messages, `python -m src.notify.sending`."""
