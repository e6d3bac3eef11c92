"""The drawn data set, its captions, and how well images match them."""
