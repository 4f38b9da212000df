"""Trackers: wandb, Comet, TensorBoard and trackio show what a run writes into its folder.

processes.py   in the run: a process is started for each tracker; also `report.py sync`, which
               sends later what was kept offline
tail.py        that process: it follows stats.csv and logs each row to one service
tracked.py     what it reads of the run folder, and trackers/NAME.json: how far it has come
services.py    one class for each service; to add a tracker is to add a class here

The training process never talks to a service, so a tracker that is slow, offline or broken holds
up nobody. A run stays the same one for a tracker as long as its folder does: trackers/id names it.
"""
