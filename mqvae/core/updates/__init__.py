"""What one batch changes: the update rules, one per file."""

from mqvae.core.look_ahead import Kept, LookAhead, Undone
from mqvae.core.updates.alternated import Alternated
from mqvae.core.updates.ema import Ema
from mqvae.core.updates.generic import GenericMeta, GenericStep
from mqvae.core.updates.joint import Joint, Synchronous
from mqvae.core.updates.meta import Meta
from mqvae.core.updates.meta_network import MetaBoth, MetaNetwork
from mqvae.core.updates.step import Step
from mqvae.core.updates.unquantized import Unquantized
from mqvae.core.updates.update import Rule, Update

__all__ = [
    "Alternated",
    "Ema",
    "GenericMeta",
    "GenericStep",
    "Joint",
    "Kept",
    "LookAhead",
    "Meta",
    "MetaBoth",
    "MetaNetwork",
    "Rule",
    "Step",
    "Synchronous",
    "Undone",
    "Unquantized",
    "Update",
]
