"""Reading and splitting data sets, and making examples of them."""
