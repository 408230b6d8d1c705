"""Numbers of ranks that share the samples, the tokens of a sample and the heads of a block."""

from opensora.errors import ConfigError
from opensora.parallel.plugins.base import plugin_class
from opensora.parallel.world import World, check_sequence_size
from opensora.schema import TrainRun


def tensor_size(run: TrainRun) -> int:
    """Ranks that share the heads of each block."""
    return run.plugin_config.get("tp_size", 1)


def sequence_size(run: TrainRun, size: int, local_size: int, where: str) -> int:
    """Ranks that share each sample, its tokens or heads. size: all ranks; local_size: those of one machine.

    Raises ConfigError when they do not divide the ranks, or the task cannot share tokens.
    """
    tokens, heads = run.sp_size, tensor_size(run)
    if tokens is None:
        tokens = local_size if plugin_class(run.plugin).shares_tokens else 1
    if run.task == "autoencoder":
        for key, ranks, what in (("sp_size", tokens, "tokens"), ("plugin_config.tp_size", heads, "heads")):
            if ranks > 1:
                raise ConfigError(
                    f"{where}: key '{key}': {ranks} ranks for each sample of task 'autoencoder'; allowed: 1, an "
                    f"autoencoder has no {what} to share; set {key}=1 and a plugin without '-seq'"
                )
    check_sequence_size(tokens, size, where)
    if heads < 1 or size % (tokens * heads):
        raise ConfigError(
            f"{where}: key 'plugin_config.tp_size': found {heads} with sp_size={tokens} on {size} rank(s); allowed: "
            "a number that, times sp_size, divides the ranks; change it or start another number of ranks"
        )
    return tokens * heads


def check_parallel_sizes(run: TrainRun, world: World, where: str) -> None:
    """Raise ConfigError unless the ranks were grouped by the sizes of the run."""
    if run.sp_size is not None and run.sp_size * tensor_size(run) != world.sequence_size:
        raise ConfigError(
            f"{where}: key 'sp_size': found {run.sp_size}, but the ranks were started in groups of {world.sequence_size}; "
            "allowed: the size they were started with"
        )
