"""Reading video: probing, sampling, decoding, and the store of sampled frames.

Only here is av imported, and of these modules not by ``sampling``, ``frame_store``, ``jobs``,
``children`` and ``extract``: what runs in the pipeline's own process decodes nothing.
"""
