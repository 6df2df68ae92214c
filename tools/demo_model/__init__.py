"""Training and evaluation of the tiny SigLIP that the demo ships."""
