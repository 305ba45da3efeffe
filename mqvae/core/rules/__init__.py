"""What one batch changes: the update rules, one per file."""

from mqvae.core.look_ahead import Kept, LookAhead, Undone
from mqvae.core.rules.alternated import Alternated
from mqvae.core.rules.ema import Ema
from mqvae.core.rules.generic import GenericMeta, GenericStep
from mqvae.core.rules.joint import Joint, Synchronous
from mqvae.core.rules.meta import Meta
from mqvae.core.rules.meta_network import MetaBoth, MetaNetwork
from mqvae.core.rules.rule import Rule
from mqvae.core.rules.step import Step
from mqvae.core.rules.unquantized import Unquantized
from mqvae.core.rules.update import Update

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
