"""Comet. Offline experiments lie in trackers/comet, as `comet upload` reads them as well."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.logging.trackers.tracked import Tracked

SECONDS_TO_FLUSH = 60
# What it would find out by itself is about our process, which computes nothing
QUIET: dict[str, Any] = {
    **dict.fromkeys(("log_code", "log_graph", "parse_args", "auto_output_logging"), False),
    **dict.fromkeys(("auto_param_logging", "auto_metric_logging", "log_env_details"), False),
    **dict.fromkeys(("log_git_metadata", "log_git_patch", "auto_log_co2"), False),
    "display_summary_level": 0,
}


def has_credentials() -> bool:
    """A key in the environment, or in Comet's own file."""
    import comet_ml

    return bool(comet_ml.config.get_config("comet.api_key"))


class Comet:
    def __init__(self, run: Tracked, archive: Path, *, is_online: bool) -> None:
        import comet_ml

        self.is_online = is_online
        if is_online:
            self.experiment = self._online(run)
        else:
            self.experiment = comet_ml.OfflineExperiment(
                offline_directory=str(archive),
                experiment_key=run.id,
                project_name=run.project,
                **QUIET,
            )
        self.experiment.set_name(run.name)
        if run.tags:
            self.experiment.add_tags(list(run.tags))
        self.experiment.log_parameters(run.config)
        self.experiment.log_others({"group": run.group, "commit": run.commit})

    def _online(self, run: Tracked) -> Any:
        """Goes on with the experiment where there is one of this key."""
        import comet_ml

        api = comet_ml.API()
        if api.get_experiment_by_key(run.id) is not None:
            experiment: Any = comet_ml.ExistingExperiment(experiment_key=run.id, **QUIET)
        else:
            experiment = comet_ml.Experiment(
                experiment_key=run.id, project_name=run.project, **QUIET
            )
        if not experiment.alive:
            raise ConnectionError("Comet does not answer, or refuses the key")
        return experiment

    def last_step(self, confirmed: int) -> int:
        return confirmed

    def log(self, step: int, values: Mapping[str, float]) -> None:
        epoch = int(values["epoch"]) if "epoch" in values else None
        self.experiment.log_metrics(dict(values), step=step, epoch=epoch)

    def flush(self) -> None:
        is_sent = self.experiment.flush(timeout=SECONDS_TO_FLUSH)
        if self.is_online and not is_sent:
            raise ConnectionError(f"Comet did not take all within {SECONDS_TO_FLUSH} s")

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        self.experiment.log_others({"outcome": outcome, "reason": reason})
        for name, path in pictures.items():
            self.experiment.log_image(str(path), name=name)
        self.flush()
        self.experiment.end()
