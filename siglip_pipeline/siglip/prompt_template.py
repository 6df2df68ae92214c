"""The sentence of a label. Imports nothing, as every command shows it in its help."""

PROMPT_TEMPLATE = "This is a photo of {label}."
"""The template of SigLIP's zero-shot pipeline. For labels only: free search uses the text as it
is."""
