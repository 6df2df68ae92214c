"""Text for people: times as they are read. Imports nothing of the package."""
