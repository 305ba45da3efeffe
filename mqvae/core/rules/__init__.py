"""What one batch changes: the update rules, one per file."""

from mqvae.core.look_ahead import Kept as Kept
from mqvae.core.look_ahead import LookAhead as LookAhead
from mqvae.core.look_ahead import Undone as Undone
from mqvae.core.rules.alternated import Alternated as Alternated
from mqvae.core.rules.ema import Ema as Ema
from mqvae.core.rules.generic import GenericMeta as GenericMeta
from mqvae.core.rules.generic import GenericStep as GenericStep
from mqvae.core.rules.joint import Joint as Joint
from mqvae.core.rules.joint import Synchronous as Synchronous
from mqvae.core.rules.meta import Meta as Meta
from mqvae.core.rules.meta_network import MetaBoth as MetaBoth
from mqvae.core.rules.meta_network import MetaNetwork as MetaNetwork
from mqvae.core.rules.rule import Rule as Rule
from mqvae.core.rules.step import Step as Step
from mqvae.core.rules.unquantized import Unquantized as Unquantized
from mqvae.core.rules.update import Update as Update
