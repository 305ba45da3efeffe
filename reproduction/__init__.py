"""Studies made with mqvae: what they train, what came of it, and the pages that tell it."""
