"""Reading video: probing, sampling, decoding, and the store of sampled frames. Only here is av imported."""
