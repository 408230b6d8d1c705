"""zero1-seq and zero2-seq: ZeRO over all ranks, with the ranks of a machine sharing the tokens of each sample.

The name sets `sp_size` where the config leaves it out; masters, moments and gradients are cut over all ranks, those of
a sequence group included, so nothing else differs. Any other plugin takes `sp_size` as well.
"""

from opensora.parallel.plugins.zero import Zero1, Zero2
from opensora.registry import PLUGINS


@PLUGINS.register_module(name="zero1-seq")
class Zero1Sequence(Zero1):
    """zero1 on a data x sequence mesh."""

    shares_tokens = True


@PLUGINS.register_module(name="zero2-seq")
class Zero2Sequence(Zero2):
    """zero2 on a data x sequence mesh."""

    shares_tokens = True
