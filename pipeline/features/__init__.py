"""From one video to the rows of each product; reductions; stored images."""
