"""The work on each video, free of Dagster: upload to stored frames, frames to stored vectors.

Owns both stages, and what keeps their results in order: duplicates, freshness, reconciliation,
removal, status. The stages take paths, skip what is current, reuse the results of another video of
the same content, continue after a failure, and record the outcome of each video in the database.
Imports `store` and the rooms below it. Importing this
package alone loads nothing: `status` needs a part of it.
"""
