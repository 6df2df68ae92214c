"""Video and pictures: probing, sampling, decoding, and the store of sampled frames.

Owns every use of av, and the work of decoding children. Only children decode, so a decoder that
crashes ends only a child. The modules that the pipeline's own process uses (:mod:`.extract`,
:mod:`.children`, :mod:`.frame_store`, :mod:`.sampling`) do not import av. Imports `uploads`,
`text`, `files`, `records` and `errors`.
"""
