"""What limits a trained network, found without training it."""

from mqvae.diagnosis.bound import without_quantization as without_quantization
from mqvae.diagnosis.choice import BestOfNearest as BestOfNearest
from mqvae.diagnosis.choice import best_of_nearest as best_of_nearest
from mqvae.diagnosis.measured import Finding as Finding
from mqvae.diagnosis.measured import Measured as Measured
from mqvae.diagnosis.motion import Motion as Motion
from mqvae.diagnosis.motion import motion as motion
from mqvae.diagnosis.refit import Refit as Refit
from mqvae.diagnosis.refit import refitted as refitted
from mqvae.diagnosis.run import Diagnosis as Diagnosis
from mqvae.diagnosis.run import diagnose as diagnose
from mqvae.diagnosis.run import write_diagnosis as write_diagnosis
