"""A Bayesian hypernetwork on handwritten digits: every draw of h is one network of an ensemble."""
