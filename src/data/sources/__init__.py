"""Families of data sets: the first word of `dataset: family/name` is the file that reads it.

Each has check(config, source), which refuses what does not exist before any data are there, and
build(config, source, preprocessing) -> Data. The shortest to copy is sklearn.py. custom.py reads
what a fork's own function returns. hf_columns.py tells targets and inputs in a table of hf/…;
tfds_files.py and tfds_records.py find and read what TFDS prepared; fetch.py is shared by all:
locks, timeouts, the error for missing data.

What is written to data_dir: libsvm/prepared/NAME/ (meta.json and arrays), hf/ (Arrow files, tokens,
asked_for.json beside sets of the hub), TFDS's own folders, indexes .FILE.index.npy beside tfrecord
files, and locks.
"""
