"""The demo: videos of captioned scenes, and the tiny SigLIP that was trained on such scenes.

Owns the videos that it renders, the model in ``demo/model``, and the command that runs the product
over both; ``tools/demo_model``, which is not in the wheel, trains the model. Imports any room but
`cli`; like `video` it may import av.
"""
