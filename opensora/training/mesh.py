"""How the ranks of a training run share samples and the tokens of a sample."""

from opensora.errors import ConfigError
from opensora.parallel.world import World, check_sequence_size
from opensora.schema import TrainRun


def sequence_size(run: TrainRun, size: int, local_size: int, where: str) -> int:
    """Ranks of a sequence group on `size` ranks, of which `local_size` are on one machine.

    Raises ConfigError when they do not divide the ranks, or the task cannot share tokens.
    """
    found = run.sp_size
    if found is None:
        found = local_size if run.plugin.endswith("-seq") else 1
    if found > 1 and run.task == "autoencoder":
        raise ConfigError(
            f"{where}: key 'sp_size': {found} ranks for each sample of task 'autoencoder'; allowed: 1, an autoencoder has "
            "no tokens to share; set sp_size=1 and a plugin without '-seq'"
        )
    check_sequence_size(found, size, where)
    return found


def check_mesh(run: TrainRun, world: World, where: str) -> None:
    """Raise ConfigError unless the ranks stand as the run asks."""
    if run.sp_size is not None and run.sp_size != world.sequence_size:
        raise ConfigError(
            f"{where}: key 'sp_size': found {run.sp_size}, but the ranks stand in groups of {world.sequence_size}; "
            "allowed: the size they were started with"
        )
