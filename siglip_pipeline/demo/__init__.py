"""The demo: a renderer of captioned scenes, and the tiny SigLIP that was trained on them."""
