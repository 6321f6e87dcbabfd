"""Videos in, batches of regions and audio segments out."""
