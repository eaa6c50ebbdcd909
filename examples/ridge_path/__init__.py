"""Ridge regression: the whole path of penalties from one run, beside the closed form."""
