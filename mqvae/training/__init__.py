"""Training: settings in, a run folder out."""

from mqvae.config.settings import inputs_of as inputs_of
from mqvae.runs.images import load_run_split as load_run_split
from mqvae.training.loop import Training as Training
from mqvae.training.processes import Processes as Processes
from mqvae.training.processes import restarted as restarted
from mqvae.training.results import device_name as device_name
from mqvae.training.results import not_finite as not_finite
from mqvae.training.results import versions as versions
from mqvae.training.results import write_evaluation as write_evaluation
from mqvae.training.runs import begin as begin
from mqvae.training.runs import resume as resume
from mqvae.training.runs import tried as tried
from mqvae.training.schedule import learning_rate as learning_rate
from mqvae.training.schedule import warmup_cosine as warmup_cosine
from mqvae.training.stopping import Interrupted as Interrupted
from mqvae.training.stopping import NotFinite as NotFinite
from mqvae.training.stopping import OutOfMemory as OutOfMemory
from mqvae.training.stopping import ProcessLost as ProcessLost
from mqvae.training.stopping import TrainingFailed as TrainingFailed
