"""What the tests share: arrays, a table of the optimizers, kernel cases, threads and processes."""
