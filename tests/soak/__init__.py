"""Commands of many clients at once, for as long as one likes: nothing is left, and nothing is cut off."""
