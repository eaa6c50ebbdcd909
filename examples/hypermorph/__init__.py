"""HyperMorph: registration of brain slices at every weight of the regularizer."""
