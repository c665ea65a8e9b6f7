"""Records, their tokens and labels, batches, and what two data sets share."""
