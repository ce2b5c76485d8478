"""Many images from a job file: reading it, naming the images, drawing them with a journal, watching a folder."""
