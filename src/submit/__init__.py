"""Names that submit scripts call, python -m src.submit.attempt: of older batches as well."""
