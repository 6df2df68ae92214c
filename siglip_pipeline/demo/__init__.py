"""The demo: films of captioned scenes, and the tiny SigLIP that was trained on such scenes.

``tools/demo_model`` trains and evaluates the model; it is not part of the package.
"""
