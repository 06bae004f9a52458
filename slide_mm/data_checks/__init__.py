"""What is in data sets, and whether a training can use it: arrays and files, no word of configs."""
