"""Video and pictures: probing, sampling, decoding, and the store of sampled frames.

Owns every use of av, and what decoding children do: they alone decode, so that a decoder that
crashes ends a child and nothing else. What the pipeline's own process runs (:mod:`.extract`,
:mod:`.children`, :mod:`.frame_store`, :mod:`.sampling`) imports no av. Imports `uploads`, `text`,
`files`, `records` and `errors`.
"""
