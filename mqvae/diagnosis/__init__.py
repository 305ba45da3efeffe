"""What limits a trained network, found without training it."""

from mqvae.diagnosis.bound import without_quantization as without_quantization
from mqvae.diagnosis.choice import best_of_nearest as best_of_nearest
from mqvae.diagnosis.motion import motion as motion
from mqvae.diagnosis.refit import refitted as refitted
from mqvae.diagnosis.run import diagnose as diagnose
