"""`softmaxce serve`: a trained model that answers HTTP requests."""
